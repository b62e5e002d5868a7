import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffux2ct import build
from diffux2ct.cli import train
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.writer import finish_dataset, read_case, write_case
from diffux2ct.errors import UserError
from diffux2ct.intensity import normalize_xray
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.steps import endless_batches
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair
from diffux2ct.xray.effects import XrayRandomization
from diffux2ct.xray.pose import Pose, is_view

SIZE = 16


def body(seed: int) -> np.ndarray:
    """Water with a bone rod, in air: [D, H, W] HU."""
    hu = np.full((SIZE,) * 3, -1000.0, np.float32)
    hu[:, 3:13, 2:14] = 0.0
    hu[:, 9:12, 6 + seed % 3 : 9 + seed % 3] = 700.0
    return hu + np.random.default_rng(seed).normal(0, 5, hu.shape).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    split = {"train": ["a", "b"], "val": [], "test": ["c"]}
    for seed, case_id in enumerate("abc"):
        write_case(root, case_id, body(seed), (4.0, 4.0, 4.0), (1.0, 2.0, 3.0), "lumbar", meta={"patient": f"p{seed}"})
    finish_dataset(root, "made", split, {"size": SIZE, "spacing": 4.0, "camera": "lumbar", "seed": 7})
    return root


def test_an_item_has_the_camera_of_its_own_case(root: Path) -> None:
    lumbar = torch.tensor(camera_preset("lumbar", SIZE, 4.0).panel_map(4.0 * SIZE))
    assert torch.equal(PreparedDataset(root)[0]["camera"], lumbar)
    assert torch.equal(PreparedDataset(root, size=SIZE // 2)[0]["camera"], lumbar)  # the same cube
    # As X-rays that came with their scans may have: another camera for one case.
    path = root / "cases" / "b" / "case.json"
    near = camera_preset("x2ct", SIZE, 4.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"camera_geometry": near.to_dict()}))
    data = PreparedDataset(root)
    assert torch.equal(data[0]["camera"], lumbar)
    assert torch.equal(data[1]["camera"], torch.tensor(near.panel_map(4.0 * SIZE)))


def test_items_are_in_model_range_and_shape(root: Path) -> None:
    data = PreparedDataset(root)
    assert len(data) == 2
    item = data[1]
    assert {k: tuple(item[k].shape) for k in ("volume", "frontal", "lateral")} == {
        "volume": (1, 16, 16, 16),
        "frontal": (1, 16, 16),
        "lateral": (1, 16, 16),
    }
    stored = np.load(data.cases[1].path / "volume.npy")
    assert stored.dtype == np.int16
    expected = torch.from_numpy(stored.astype(np.float32) + 1024) / 2524 * 2 - 1
    torch.testing.assert_close(item["volume"][0], expected)
    for view in ("frontal", "lateral"):
        assert item[view].dtype == torch.float32
        assert (item[view].min().item(), item[view].max().item()) == pytest.approx((-1.0, 1.0), abs=0.02)
    assert item["index"] == 1
    assert data.cases[1].patient == "p1"
    assert data.cases[1].origin == (1.0, 2.0, 3.0)
    assert [i["index"] for i in PreparedDataset(root, cache=True)] == [0, 1]


def test_other_views_are_projected_as_a_preparation_would(root: Path) -> None:
    """From the whole cube at its stored size, in whole HU, with the case's own camera; then averaged."""
    settings = {"xray_normalization": "fixed", "views": [135, 0, 22.5]}
    data, half = PreparedDataset(root, **settings), PreparedDataset(root, size=SIZE // 2, cache=True, **settings)
    assert data.views == ("angle_135", "frontal", "angle_22p5")
    item, small = data[1], half[1]
    assert [key for key in item if is_view(key)] == list(data.acquisition(1, "").poses) == list(data.views)
    torch.testing.assert_close(item["frontal"], PreparedDataset(root, xray_normalization="fixed")[1]["frontal"])
    hu = np.load(data.cases[1].path / "volume.npy")
    camera = camera_preset("lumbar", SIZE, 4.0)
    for angle, view in ((135, "angle_135"), (22.5, "angle_22p5")):
        image = render_pair(hu, 4.0, camera, SIZE, jitter=Pose((0, 0, angle)), views=["frontal"])["frontal"]
        torch.testing.assert_close((item[view][0] + 1) * 4, torch.from_numpy(image), rtol=0, atol=1e-5)
        means = image.reshape(8, 2, 8, 2).mean((1, 3))
        torch.testing.assert_close((small[view][0] + 1) * 4, torch.from_numpy(means), rtol=0, atol=1e-5)
        assert torch.equal(half[1][view], small[view])
    torch.testing.assert_close(data.mean_volume(), PreparedDataset(root).mean_volume(), rtol=0, atol=0)


def test_xrays_that_cannot_be_projected_anew_leave_the_stored_views(root: Path) -> None:
    path = root / "cases" / "b" / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"xrays": "stored"}))
    assert set(PreparedDataset(root, views=[90])[1]) == {"volume", "lateral", "camera", "index"}
    with pytest.raises(UserError, match=r"dataset.views=\[0, 45\] projects X-rays anew .* those of b were stored"):
        PreparedDataset(root, views=[0, 45])


def test_each_view_at_an_angle_is_exposed_on_its_own(root: Path) -> None:
    exposed = XrayRandomization(photons=(1e3, 1e3), probability=1.0)
    data = PreparedDataset(root, views=[45, 0, 90], randomize=exposed)
    biplanar = PreparedDataset(root, randomize=exposed)
    seen, two = data[0, 5], biplanar[0, 5]
    assert torch.equal(seen["frontal"], two["frontal"])
    assert torch.equal(seen["lateral"], two["lateral"])
    assert not torch.equal(seen["angle_45"], data[0]["angle_45"])


def test_xrays_belong_to_the_volume(root: Path) -> None:
    """The rod, at the posterior and on x 6..8, is the densest column of both views."""
    item = PreparedDataset(root, "test", xray_normalization="fixed")[0]
    assert item["frontal"][0, 8].argmax().item() in (8, 9, 10)
    assert item["lateral"][0, 8].argmax().item() in (9, 10, 11)


def test_smaller_size_is_a_block_mean_at_the_right_place(root: Path) -> None:
    full, half = PreparedDataset(root, size=16), PreparedDataset(root, size=8)
    pooled = torch.nn.functional.avg_pool3d(full[0]["volume"], 2)
    torch.testing.assert_close(half[0]["volume"], pooled, atol=1e-5, rtol=0)
    raw = torch.from_numpy(np.load(full.cases[0].path / "frontal.npy"))[None]
    torch.testing.assert_close(half[0]["frontal"], normalize_xray(torch.nn.functional.avg_pool2d(raw, 2)))
    assert half.cases[0].spacing == (8.0, 8.0, 8.0)
    assert half.cases[0].origin == (3.0, 4.0, 5.0)
    with pytest.raises(UserError, match=r"train with dataset.size=16 or 8 \(with size="):
        PreparedDataset(root, size=12)


def test_mean_volume_is_the_mean(root: Path) -> None:
    data = PreparedDataset(root)
    torch.testing.assert_close(data.mean_volume(), (data[0]["volume"] + data[1]["volume"]) / 2)


def test_normalize_xray() -> None:
    images = torch.stack([torch.tensor([[0.0, 2.0], [4.0, 1.0]]), torch.zeros(2, 2)])
    torch.testing.assert_close(normalize_xray(images)[0], torch.tensor([[-1.0, 0.0], [1.0, -0.5]]))
    torch.testing.assert_close(normalize_xray(images)[1], torch.full((2, 2), -1.0))
    torch.testing.assert_close(normalize_xray(images, "fixed", 2.0)[0], torch.tensor([[-1.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(UserError, match="choose max or fixed"):
        normalize_xray(images, "none")


def test_reading_needs_neither_simpleitk_nor_wandb(root: Path) -> None:
    code = (
        "import sys; from diffux2ct.data.prepared.dataset import PreparedDataset; "
        f"item = PreparedDataset({str(root)!r})[0]; "
        "bad = {'SimpleITK', 'wandb', 'hydra'} & set(sys.modules); assert not bad, bad; print(item['volume'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "[1, 16, 16, 16]" in done.stdout


def test_missing_folder_says_in_three_lines_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        PreparedDataset(tmp_path / "lumbarv")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert str(tmp_path / "lumbarv") in lines[0]
    assert "python scripts/prepare_dataset.py dataset=lumbarv raw=DIR" in lines[2]


def test_damage_is_named(root: Path) -> None:
    np.save(root / "cases" / "a" / "volume.npy", np.zeros((16, 16, 8), np.int16))
    with pytest.raises(UserError, match=r"cases/a/volume\.npy: int16 \(16, 16, 8\), where .* promises \(16, 16, 16\)"):
        PreparedDataset(root)
    (root / "cases" / "a" / "volume.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"volume\.npy: missing or damaged"):
        PreparedDataset(root)
    (root / "cases" / "a" / "volume.npy").unlink()
    with pytest.raises(UserError, match=r"volume\.npy: missing or damaged"):
        PreparedDataset(root)
    with pytest.raises(UserError, match="no cases in split 'val'"):
        PreparedDataset(root, "val")
    (root / "dataset.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        PreparedDataset(root)


def test_case_holds_clipped_int16_and_a_drr_of_it(tmp_path: Path) -> None:
    hu = body(0)
    hu[:4, 4:8, 4:8] = 3071.0
    metal = hu.copy()
    metal[:4, 4:8, 4:8] = 1500.0
    for case_id, volume in (("a", hu), ("b", np.round(metal))):
        write_case(tmp_path, case_id, volume, (4.0,) * 3, (0.0,) * 3, "lumbar", labels=np.zeros(hu.shape, np.uint8))
    one, two = tmp_path / "cases" / "a", tmp_path / "cases" / "b"
    assert np.load(one / "volume.npy").max() == 1500
    np.testing.assert_array_equal(np.load(one / "frontal.npy"), np.load(two / "frontal.npy"))
    assert sorted(p.name for p in one.iterdir()) == [
        "case.json",
        "frontal.npy",
        "labels.npy",
        "lateral.npy",
        "volume.npy",
    ]
    record = read_case(tmp_path, "a")
    assert record is not None
    assert record["frontal_scale"] == pytest.approx(np.load(one / "frontal.npy").max())


def test_replaced_case_and_failed_case_leave_no_halves(tmp_path: Path) -> None:
    arguments = ((4.0,) * 3, (0.0,) * 3, "lumbar")
    write_case(tmp_path, "a", body(0), *arguments)
    write_case(tmp_path, "a", body(1), *arguments)
    np.testing.assert_array_equal(np.load(tmp_path / "cases/a/volume.npy"), np.round(body(1)).astype(np.int16))
    with pytest.raises(TypeError):  # JSON cannot hold it, which shows only when all arrays are written
        write_case(tmp_path, "b", body(0), *arguments, meta={"bad": object()})
    assert [p.name for p in (tmp_path / "cases").iterdir()] == ["a"]


def test_a_patient_cannot_be_on_both_sides(root: Path) -> None:
    write_case(root, "a2", body(4), (4.0,) * 3, (0.0,) * 3, "lumbar", meta={"patient": "p0"})
    with pytest.raises(UserError, match="patient p0 is in both train and test"):
        finish_dataset(root, "made", {"train": ["a", "b"], "test": ["a2"]}, {"size": SIZE})
    assert json.loads((root / "split.json").read_text())["test"] == ["c"]


RANDOMIZE = XrayRandomization(photons=(1e3, 1e5), probability=1.0)


def test_an_exposure_is_drawn_by_the_seed_and_the_volume_kept(root: Path) -> None:
    clean, data = PreparedDataset(root), PreparedDataset(root, randomize=RANDOMIZE)
    one, same, other = data[1, 7], data[1, 7], data[1, 8]
    for view in ("frontal", "lateral"):
        assert torch.equal(one[view], same[view])
        assert not torch.equal(one[view], other[view])
        assert not torch.equal(one[view], data[1, 7 + 2**32][view])  # a CPU generator's manual_seed keeps 32 bits
        assert torch.equal(data[1][view], clean[1][view])
        assert torch.equal(clean[1, 7][view], clean[1][view])
        assert one[view].shape == clean[1][view].shape
        assert -1 <= one[view].min() <= one[view].max() <= 1
        # Still a picture of the same patient.
        together = torch.stack((one[view].flatten(), clean[1][view].flatten()))
        assert torch.corrcoef(together)[0, 1] > 0.5
    assert torch.equal(one["volume"], clean[1]["volume"])
    assert not torch.equal(one["frontal"], data[1, 7 + 2**32]["frontal"])  # all bits of the seed count
    cached = PreparedDataset(root, randomize=RANDOMIZE, cache=True)
    for _ in range(2):
        assert torch.equal(cached[1, 7]["frontal"], one["frontal"])


def test_only_training_is_randomized(phantoms: Path, compose) -> None:
    cfg = compose("+dataset.randomize={photons:[1e3,1e4]}").dataset
    assert build.build_dataset(cfg, "train", training=True).randomize == XrayRandomization(photons=(1e3, 1e4))
    assert build.build_dataset(cfg, "train").randomize is None
    assert build.build_dataset(compose().dataset, "train", training=True).randomize is None
    with pytest.raises(UserError, match=r"unknown key 'dataset\.randomize\.blur'"):
        build.build_dataset(compose("+dataset.randomize={blur:[1,2]}").dataset, "train", training=True)


def batches(data: PreparedDataset, count: int, step: int = 0, rank: int = 0, world: int = 1, **settings) -> list:
    settings = TrainerSettings(max_steps=9, batch_size=4, seed=3, **settings)
    made = endless_batches(data, settings, step, rank, world, torch.device("cpu"))
    return [next(made) for _ in range(count)]


def test_exposures_depend_on_seed_step_and_sample_alone(phantoms: Path) -> None:
    data = PreparedDataset(phantoms, randomize=RANDOMIZE)
    whole = [batch["frontal"] for batch in batches(data, 4)]
    assert not torch.equal(whole[0], whole[1])
    clean = [batch["frontal"] for batch in batches(PreparedDataset(phantoms), 4)]
    assert not torch.equal(whole[0], clean[0])
    resumed = [batch["frontal"] for batch in batches(data, 2, step=2)]
    workers = [batch["frontal"] for batch in batches(data, 4, num_workers=2)]
    parts = [batch["frontal"] for batch in batches(data, 8, accumulate=2)]
    ranks = [[batch["frontal"] for batch in batches(data, 4, rank=rank, world=2)] for rank in (0, 1)]
    for at, expected in enumerate(whole):
        assert torch.equal(workers[at], expected)
        assert torch.equal(torch.cat(parts[2 * at : 2 * at + 2]), expected)
        assert torch.equal(torch.cat([ranks[0][at], ranks[1][at]]), expected)
        assert at < 2 or torch.equal(resumed[at - 2], expected)


def test_a_randomized_and_augmented_run_resumes_bit_for_bit(compose, tmp_path: Path) -> None:
    def go(name: str, steps: int) -> dict:
        overrides = ["+dataset.randomize={photons:[1e3,1e5],probability:1}", "dataset.augment=true"]
        overrides += ["trainer.precision=fp32", f"trainer.max_steps={steps}"]
        train.run(compose(f"run_dir={tmp_path / name}", f"name={name}", *overrides))
        return checkpoint.load(tmp_path / name)["model"]

    whole = go("whole", 3)
    go("parts", 1)
    parts = go("parts", 3)
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key
    with pytest.raises(UserError, match=r"another config \(dataset\.augment, dataset\.randomize"):
        train.run(compose(f"run_dir={tmp_path / 'whole'}", "name=whole", "trainer.max_steps=4"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # so that opening it would not wait, and what it holds would pass for DICOM
    try:
        os.write(held, bytes(128) + b"DICM")
        with pytest.raises(UserError, match="no prepared data set here"):
            PreparedDataset(tmp_path)
        assert len(os.read(held, 200)) == 132
    finally:
        os.close(held)


def test_a_folder_made_for_another_window_is_refused(root: Path) -> None:
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(description | {"window": [-1024, 1476]}))
    with pytest.raises(UserError, match=r"made for HU in \[-1024,1476\], not \[-1024,1500\]; use 'dataset.win"):
        PreparedDataset(root)
    assert len(PreparedDataset(root, window=(-1024, 1476))) == 2
