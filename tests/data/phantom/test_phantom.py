"""The lumbar phantom: reproducible, anatomically on the right side, in plausible HU, and a readable folder."""

import inspect
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffux2ct.data.labels import LABELS, label_name, rod_label, screw_label
from diffux2ct.data.phantom import Phantom, generate_dataset, make_phantom
from diffux2ct.data.phantom.ranges import ranges_table
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.files.folder_lock import only_writer

BONES = ("L1", "L2", "L3", "L4", "L5", "sacrum", "left_hip", "right_hip", "ribs")
SCREWS = [screw_label(i) for i in range(6)]
RODS = [rod_label(i) for i in range(2)]


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [make_phantom(0, index, size=64) for index in range(20)]


@pytest.fixture(scope="module")
def large() -> Phantom:
    return make_phantom(0, 0, size=128)


def centre_of(phantom: Phantom, *values: int | str) -> np.ndarray:
    """Mean (z, y, x) index of the voxels with these labels."""
    numbers = [LABELS[v] if isinstance(v, str) else v for v in values]
    return np.argwhere(np.isin(phantom.labels, numbers)).mean(0)


def _block_mean(volume: np.ndarray, factor: int) -> np.ndarray:
    n = volume.shape[0] // factor
    return volume.reshape(n, factor, n, factor, n, factor).mean((1, 3, 5))


def test_same_seed_and_index_give_the_same_voxels(cohort: list[Phantom]) -> None:
    again = make_phantom(0, 3, size=64)
    assert np.array_equal(again.hu, cohort[3].hu)
    assert np.array_equal(again.labels, cohort[3].labels)
    assert again.meta == cohort[3].meta
    json.dumps(again.meta)  # goes into case.json


@pytest.mark.parametrize("other", [(0, 4), (1, 3), (3, 0)])
def test_another_seed_or_index_is_another_patient(cohort: list[Phantom], other: tuple[int, int]) -> None:
    phantom = make_phantom(*other, size=64)
    assert phantom.meta["anatomy"] != cohort[3].meta["anatomy"]
    assert np.abs(phantom.hu.astype(float) - cohort[3].hu).mean() > 30


def test_grid_is_centred_and_isotropic(large: Phantom) -> None:
    assert large.hu.shape == large.labels.shape == (128, 128, 128)
    assert large.hu.dtype == np.int16
    assert large.labels.dtype == np.uint8
    assert large.spacing == (2.0, 2.0, 2.0)
    assert large.origin == (-127.0, -127.0, -127.0)
    odd = make_phantom(0, 0, size=20, extent_mm=300.0)
    assert odd.hu.shape == (20, 20, 20)
    assert odd.spacing == (15.0,) * 3
    assert odd.origin == (-142.5,) * 3


def test_bones_are_present_ordered_and_dense(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        for name in BONES:
            inside = phantom.hu[phantom.labels == LABELS[name]]
            assert inside.size > 60, (phantom.meta["index"], name)
            assert 145 < inside.mean() < 800, (phantom.meta["index"], name)
        heights = [centre_of(phantom, name)[0] for name in ("sacrum", "L5", "L4", "L3", "L2", "L1")]
        steps = np.diff(heights) * phantom.spacing[2]
        assert (steps > 10).all()
        assert (steps[1:] < 46).all()


def test_labels_are_those_of_the_scheme(cohort: list[Phantom]) -> None:
    found = {int(v) for phantom in cohort for v in np.unique(phantom.labels)} - {0}
    assert not [v for v in found if label_name(v).startswith("label_")]
    assert {LABELS[name] for name in BONES} <= found
    assert found & set(SCREWS)
    assert found & set(RODS)


def test_left_is_high_x_and_posterior_is_high_y(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        middle = (phantom.hu.shape[0] - 1) / 2
        assert centre_of(phantom, "left_hip")[2] > middle + 10
        assert centre_of(phantom, "right_hip")[2] < middle - 10
        spine = centre_of(phantom, "L1", "L2", "L3", "L4", "L5")
        assert spine[1] > middle + 1
        assert abs(spine[2] - middle) < 8
        body_y = np.argwhere(phantom.hu > -300).mean(0)[1]
        assert 3 < spine[1] - body_y < 18


def test_liver_is_on_the_right(cohort: list[Phantom]) -> None:
    """Beside and before L1 the patient's right (low x) is solid; the left holds more gas, lung and fat."""
    solid = []
    for phantom in cohort:
        z, y, x = centre_of(phantom, "L1").round().astype(int)
        hu = phantom.hu[min(z + 4, 58) : min(z + 8, 62), y - 14 : y - 4]
        tissue = (hu > 0) & (hu < 180)
        solid.append([tissue[..., x - 20 : x - 8].mean(), tissue[..., x + 9 : x + 21].mean()])
    right, left = np.array(solid).T
    assert 0.75 < right.mean() < 1.0
    assert 0.35 < left.mean() < 0.8
    assert (right > left).mean() > 0.85


def test_about_half_carry_screws_each_with_its_label(cohort: list[Phantom]) -> None:
    implanted = [p for p in cohort if p.meta["num_screws"]]
    assert 5 <= len(implanted) <= 15
    for phantom in cohort:
        # Those of a plate on the pelvis are numbered after the ones in pedicles.
        pedicle = len(phantom.meta["implant_levels"]) * 2
        screws = [v for v in SCREWS[:pedicle] if (phantom.labels == v).any()]
        rods = [v for v in RODS if (phantom.labels == v).any()]
        if phantom.meta["implant_levels"]:
            assert len(screws) <= phantom.meta["num_screws"] <= len(screws) + 5
            assert len(screws) == len(phantom.meta["implant_levels"]) * len(rods)
            assert 1800 < phantom.hu.max() <= 3071
            behind = centre_of(phantom, *rods)[1] - centre_of(phantom, *screws)[1]
            assert 1 < behind * phantom.spacing[1] < 40
        elif not phantom.meta["hip_implant"]:
            assert not screws
            assert not rods
            assert phantom.hu.max() < 2000


def test_hounsfield_values_are_those_of_a_ct(large: Phantom) -> None:
    hu = large.hu
    share = {
        "air": (hu < -900).mean(),
        "fat": ((hu > -150) & (hu < -60)).mean(),
        "soft": ((hu > 0) & (hu < 130)).mean(),
        "bone": (hu > 250).mean(),
    }
    assert 0.10 < share["air"] < 0.6
    assert 0.06 < share["fat"] < 0.5
    assert 0.12 < share["soft"] < 0.6
    assert 0.008 < share["bone"] < 0.06
    corner = hu[:, :10, :10]
    assert -1010 < corner.mean() < -990
    assert 3 < corner[corner > -1024].std() < 25
    l3 = hu[large.labels == LABELS["L3"]]
    assert 550 < np.percentile(l3, 99) < 3071
    assert 60 < np.percentile(l3, 20) < 420


def test_size_32_is_the_block_average_of_size_128(large: Phantom) -> None:
    small = make_phantom(0, 0, size=32)
    reference = _block_mean(large.hu.astype(np.float64), 4)
    difference = np.abs(small.hu - reference)
    assert 0.5 < difference.mean() < 9.0  # noise differs; surfaces agree
    assert np.percentile(difference, 99) < 90
    assert abs((small.hu - reference).mean()) < 2.0
    other = make_phantom(0, 1, size=32).hu - reference
    assert np.abs(other).mean() > 8 * difference.mean()


def test_generated_folder_is_readable_resumes_and_is_left_alone(tmp_path: Path, capsys) -> None:
    root = tmp_path / "phantom"
    generate_dataset(root, 3, 1, 2, size=16, extent_mm=256.0, seed=5)
    sizes = {split: len(PreparedDataset(root, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 3, "val": 1, "test": 2}
    dataset = PreparedDataset(root, "test")
    item = dataset[0]
    assert item["volume"].shape == (1, 16, 16, 16)
    assert item["frontal"].shape == (1, 16, 16)
    assert dataset.cases[0].spacing == (16.0, 16.0, 16.0)
    assert dataset.cases[0].origin == (-120.0, -120.0, -120.0)
    stored = np.load(dataset.cases[0].path / "volume.npy")
    expected = np.clip(make_phantom(5, 2_000_000, 16).hu, -1024, 1500)
    assert np.array_equal(stored, expected)
    assert -0.99 < float(item["volume"].mean()) < 0.2
    assert float(item["frontal"].max()) == pytest.approx(1.0)
    patients = [c.patient for s in ("train", "val", "test") for c in PreparedDataset(root, s).cases]
    assert len(set(patients)) == 6
    names = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["label_names"]
    assert names[str(LABELS["L3"])] == "L3"

    stamp = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    generate_dataset(root, 3, 1, 2, size=16, extent_mm=256.0, seed=5)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == stamp

    kept = root / "cases" / "phantom_train_00000" / "volume.npy"
    (root / "dataset.json").unlink()
    for file in (root / "cases" / "phantom_train_00001").iterdir():
        file.unlink()
    generate_dataset(root, 3, 1, 2, size=16, extent_mm=256.0, seed=5)
    assert kept.stat().st_mtime_ns == stamp[kept]
    assert len(PreparedDataset(root, "train")[1]) == 5

    assert not capsys.readouterr().err.count("note:")
    generate_dataset(root, 3, 2, 2, size=16, extent_mm=256.0, seed=5)  # more validation cases are added
    assert f"note: {root}: cases are added to it (num_val 1 -> 2)" in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == stamp[kept]
    assert [len(PreparedDataset(root, split)) for split in ("train", "val", "test")] == [3, 2, 2]
    with pytest.raises(UserError, match=r"other settings \(num_val=2\)"):
        generate_dataset(root, 3, 1, 2, size=16, extent_mm=256.0, seed=5)

    with pytest.raises(UserError, match=r"other settings \(num_train=3\)"):  # another training set
        generate_dataset(root, 4, 2, 2, size=16, extent_mm=256.0, seed=5)
    with pytest.raises(UserError, match=r"other settings \(seed=5\)"):
        generate_dataset(root, 3, 2, 2, size=16, extent_mm=256.0, seed=6)
    with pytest.raises(UserError, match=r"other settings \(region=lumbar\)"):
        generate_dataset(root, 3, 2, 2, size=16, extent_mm=256.0, seed=5, region="thorax")


def test_one_process_at_a_time_writes_phantoms(tmp_path: Path) -> None:
    write = partial(generate_dataset, tmp_path / "phantom", 1, 1, 1, size=16, extent_mm=256.0, seed=5)
    with only_writer(tmp_path / "phantom"), pytest.raises(UserError, match="phantom: in use by another process"):
        write()
    assert not (tmp_path / "phantom").exists()
    write()
    with only_writer(tmp_path / "phantom"):  # a finished folder is only read
        write()


def test_a_foreign_folder_and_bad_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    with pytest.raises(UserError, match="another data set"):
        generate_dataset(tmp_path, 1, 1, 1, size=16, extent_mm=256.0, seed=0)
    with pytest.raises(UserError, match="positive"):
        make_phantom(0, 0, size=0)
    with pytest.raises(UserError, match="choose from lumbar, pelvis, thorax"):
        make_phantom(0, 0, region="knee")
    with pytest.raises(UserError, match=r"region=knee.*choose from lumbar"):
        generate_dataset(tmp_path / "new", 1, 1, 1, size=16, extent_mm=256.0, seed=0, region="knee")
    assert not (tmp_path / "new").exists()


@pytest.mark.dist
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    for workers in (1, 2):
        generate_dataset(tmp_path / str(workers), 2, 1, 1, 16, 256.0, seed=1, camera="parallel", workers=workers)
    for split in ("train", "val", "test"):
        one, two = (PreparedDataset(tmp_path / str(w), split) for w in (1, 2))
        assert len(one) == len(two) > 0
        for i in range(len(one)):
            for key in ("volume", "frontal", "lateral"):
                torch.testing.assert_close(one[i][key], two[i][key], rtol=1e-6, atol=1e-6)


def test_the_documented_ranges_are_those_of_the_code():
    page = Path(__file__).parents[3] / "docs" / "phantom.md"
    assert ranges_table() in page.read_text(encoding="utf-8")


def test_phantoms_from_python_are_those_of_the_config_by_default() -> None:
    defaults = {key: p.default for key, p in inspect.signature(generate_dataset).parameters.items()}
    config = OmegaConf.load(Path(__file__).parents[3] / "configs" / "dataset" / "phantom.yaml")
    assert defaults["size"] == config.size
    assert config.generate == {key: defaults[key] for key in config.generate}
