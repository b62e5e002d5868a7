"""Every setting of configs/dataset/prepare reaches the cases, and nothing else moves them."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffux2ct.arguments import read
from diffux2ct.data.io.ct_image import CtImage, LabelImage
from diffux2ct.data.labels import LABELS
from diffux2ct.data.preparation.cube import lumbar_centre, x2ct_centre
from diffux2ct.data.preparation.prepare import PrepareSettings, prepare, survey
from diffux2ct.data.prepared.split import split_patients
from diffux2ct.errors import UserError


def write(path: Path, array: np.ndarray, spacing: float = 10.0) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((spacing,) * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def box(shape=(40, 34, 30)) -> np.ndarray:
    """A block of water with a bone in it."""
    hu = np.full(shape, -1000, np.int16)
    hu[3:-3, 6:-6, 6:-6] = 40
    hu[:, 20:24, 13:17] = 700
    return hu


def made(raw: Path, out: Path, settings: PrepareSettings, **arguments) -> dict:
    """Prepare one scan called p; its arrays and its record."""
    arguments = {"workers": 1, "progress": False} | arguments
    report = prepare("folder", raw, out, settings=settings, **arguments)
    assert report.bad == [], report.bad
    case = next((out / "cases").iterdir())
    return {f.stem: np.load(f) for f in case.glob("*.npy")} | {"record": json.loads((case / "case.json").read_text())}


def test_x2ct_grid_keeps_the_topmost_320_mm_and_the_middle(tmp_path: Path) -> None:
    """X2CT-GAN's crop of 1 mm voxels, on 10 mm ones: z 400 -> its last 320, y 340 -> middle, x 300 -> padded."""
    z, y, x = np.indices((40, 34, 30))
    volume = (25 * z + 5 * y + x).astype(np.int16)
    volume[0, 0, 0] = -1000  # else it would not pass for HU
    write(tmp_path / "raw" / "p.nii.gz", volume)
    settings = PrepareSettings(32, 10.0, "x2ct", (-1024, 1476), grid="x2ct")
    case = made(tmp_path / "raw", tmp_path / "out", settings)
    expected = np.full((32, 32, 32), -1024)
    expected[:, :, 1:31] = volume[8:, 1:33, :]
    np.testing.assert_array_equal(case["volume"], expected)
    assert case["record"]["crop"] == "x2ct"


@pytest.mark.parametrize(
    ("size", "low"),
    [
        # voxels of 1 mm (x, y, z) -> where the cube of 320 begins, in voxels: the smaller half of a pad or cut below
        ((320, 320, 320), (0, 0, 0)),
        ((325, 331, 500), (2, 5, 180)),
        ((301, 320, 301), (-9, 0, -9)),
    ],
)
def test_x2ct_grid_rounds_as_x2ct_does(size, low) -> None:
    ct = CtImage(np.zeros((1, 1, 1), np.int16), (1.0, 1.0, 1.0), (7.0, -3.0, 90.0))
    ct = CtImage(np.broadcast_to(ct.hu, size[::-1]), ct.spacing, ct.origin)
    first = x2ct_centre(ct, 320.0) - 159.5
    np.testing.assert_allclose(first, np.array(ct.origin) + low)


def test_lumbar_grid_is_centred_on_l1_to_l5(tmp_path: Path) -> None:
    labels = np.zeros((40, 34, 30), np.uint8)
    for i, name in enumerate(("L5", "L4", "L3", "L2", "L1")):
        labels[10 + 3 * i : 13 + 3 * i, 18:24, 11:17] = LABELS[name]
    labels[25:28, 18:24, 11:17] = LABELS["T12"]
    image = LabelImage(labels, (10.0,) * 3, (0.0,) * 3)
    np.testing.assert_allclose(lumbar_centre(image), (135.0, 205.0, 170.0))
    write(tmp_path / "raw" / "p.nii.gz", box())
    write(tmp_path / "raw" / "p_label.nii.gz", labels)
    settings = PrepareSettings(16, 10.0, grid="lumbar")
    case = made(tmp_path / "raw", tmp_path / "out", settings, labels="ours")
    found = np.argwhere((case["labels"] >= LABELS["L1"]) & (case["labels"] <= LABELS["L5"]))
    assert np.abs(found.min(0) + found.max(0) - 15).max() <= 1  # in the middle of 16 voxels
    names = json.loads((tmp_path / "out/dataset.json").read_text())["label_names"]
    assert names["20"] == "L1"
    # Without a meaning for the numbers, without labels, and with a vertebra cut off: left out, by name.
    _, report = survey(tmp_path / "raw", settings=settings, workers=1, progress=False)
    assert "meaning of its label numbers is unknown" in report.bad[0][1]
    write(tmp_path / "raw" / "p_label.nii.gz", np.where(labels == LABELS["L2"], 0, labels))
    _, report = survey(tmp_path / "raw", settings=settings, labels="ours", workers=1, progress=False)
    assert "the labels hold no L2" in report.bad[0][1]
    (tmp_path / "raw" / "p_label.nii.gz").unlink()
    for needy in (settings, PrepareSettings(16, 10.0, instrument={"levels": [1, 1]})):
        _, report = survey(tmp_path / "raw", settings=needy, workers=1, progress=False)
        assert "no labels" in report.bad[0][1]


def test_couch_window_projector_and_attenuation_reach_the_case(tmp_path: Path) -> None:
    hu = box()
    hu[:, 31, 2:28] = 300  # a couch
    write(tmp_path / "raw" / "p.nii.gz", hu)
    plain = made(tmp_path / "raw", tmp_path / "plain", PrepareSettings(32, 10.0))
    assert plain["volume"][:, 30].max() == 300
    cleared = made(tmp_path / "raw", tmp_path / "cleared", PrepareSettings(32, 10.0, remove_couch=True))
    assert cleared["volume"][:, 30].max() == -1000 - 24
    np.testing.assert_array_equal(cleared["volume"][:, 5:28, 6:26], plain["volume"][:, 5:28, 6:26])
    narrow = made(tmp_path / "raw", tmp_path / "narrow", PrepareSettings(32, 10.0, window=(-1000, 500)))
    assert (narrow["volume"].min(), narrow["volume"].max()) == (-1000, 500)
    for change in ({"projector": "siddon"}, {"attenuation": "water"}, {"pose_jitter": {"degrees": 5, "mm": 5}}):
        other = made(tmp_path / "raw", tmp_path / str(change), PrepareSettings(32, 10.0, **change))
        same = made(tmp_path / "raw", tmp_path / f"{change}2", PrepareSettings(32, 10.0, **change))
        np.testing.assert_array_equal(other["frontal"], same["frontal"])
        np.testing.assert_array_equal(other["volume"], plain["volume"])
        assert 0.0005 < np.abs(other["frontal"] - plain["frontal"]).mean() < 0.3
        assert (other["record"]["poses"] is not None) == ("pose_jitter" in change)


def test_grey_levels_need_a_stated_map(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    grey = np.round((box().astype(float) + 1000) / 17).astype(np.uint8)
    write(raw / "a.nii.gz", grey)
    write(raw / "b.nii.gz", box())
    settings = PrepareSettings(16, 10.0)
    table = tmp_path / "map.csv"
    table.write_text("file,slope,intercept\na.nii.gz,17,-1000\n")
    report = prepare("folder", raw, tmp_path / "none", settings=settings, workers=1, progress=False)
    assert [source for source, _ in report.bad] == ["a.nii.gz"]
    assert "grey levels, not HU" in report.bad[0][1]
    report = prepare("folder", raw, tmp_path / "both", settings=settings, rescale=table, workers=1, progress=False)
    assert report.bad == []
    a, b = (np.load(tmp_path / f"both/cases/{name}/volume.npy").astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 24 + 17 / 2  # the border is -1024 HU, and grey levels are 17 HU apart
    with pytest.raises(UserError, match="other settings, rescale="):
        prepare("folder", raw, tmp_path / "both", settings=settings, workers=1, progress=False)
    for bad, message in (((1.0,), "rescale="), ((0.0, 5.0), "slope 0.0"), (tmp_path / "no.csv", "cannot be read")):
        with pytest.raises(UserError, match=message):
            prepare("folder", raw, tmp_path / "bad", settings=settings, rescale=bad, workers=1, progress=False)
    table.write_text("file,slope,intercept\nc.nii.gz,17,-1000\n")
    with pytest.raises(UserError, match="no scan is named c.nii.gz"):
        prepare("folder", raw, tmp_path / "bad", settings=settings, rescale=table, workers=1, progress=False)
    assert not (tmp_path / "bad").exists()


def test_padding_of_water_becomes_air(tmp_path: Path) -> None:
    hu = np.zeros((40, 34, 30), np.int16)
    hu[5:-5, 4:-4, 5:-5] = np.random.default_rng(0).normal(0, 20, (30, 26, 20)).round()
    hu[20:, 10:14, 10:14] = -1000  # a gas bubble: HU reach below 0
    write(tmp_path / "raw" / "p.nii.gz", hu)
    case = made(tmp_path / "raw", tmp_path / "out", PrepareSettings(16, 20.0))
    assert case["volume"][0, 0, 0] == -1024
    assert abs(case["volume"][7:9, 6:12, 7:9].mean()) < 150
    assert any("padding of exactly 0 HU" in note for note in case["record"]["notes"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PrepareSettings(grid="middle"), "grid=middle"),
        (PrepareSettings(projector="raycast"), "projector=raycast"),
        (PrepareSettings(attenuation="lead"), "attenuation=lead"),
        (PrepareSettings(pose_jitter={"degrees": 3}), "pose_jitter="),
        (PrepareSettings(instrument={"screws": 4}), "instrument: unknown screws"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: PrepareSettings, message: str) -> None:
    write(tmp_path / "raw" / "p.nii.gz", box())
    with pytest.raises(UserError, match=message):
        prepare("folder", tmp_path / "raw", tmp_path / "out", settings=settings, workers=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_before_these_settings_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "p.nii.gz", box())
    settings = PrepareSettings(16, 10.0)
    made(tmp_path / "raw", tmp_path / "out", settings)
    old = ("size", "spacing", "camera", "window", "seed")
    path = tmp_path / "out" / "cases" / "p" / "case.json"
    record = json.loads(path.read_text())
    record["settings"] = {key: record["settings"][key] for key in old}
    for key in ("rescale", "remap", "content_sha256", "notes", "hu_range", "label_values"):
        record.pop(key, None)
    path.write_text(json.dumps(record))
    description = json.loads((tmp_path / "out/dataset.json").read_text())
    for key in PrepareSettings().as_dict().keys() - {*old, "camera"}:
        description.pop(key)
    (tmp_path / "out/dataset.json").write_text(json.dumps(description))
    report = prepare("folder", tmp_path / "raw", tmp_path / "out", settings=settings, workers=1, progress=False)
    assert (report.written, report.found) == (0, 1)
    changed = PrepareSettings(16, 10.0, projector="siddon")
    with pytest.raises(UserError, match="projector=joseph .now siddon"):
        prepare("folder", tmp_path / "raw", tmp_path / "out", settings=changed, workers=1, progress=False)


@pytest.mark.parametrize("name", ["folder", "lumbarv", "ctspine1k", "ctpelvic1k", "lidc_idri", "lumbarv_open"])
def test_the_configs_name_settings_that_exist(name: str) -> None:
    from diffux2ct.cli.prepare import Recipe

    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("prepare", overrides=[f"dataset={name}"])
    recipe = read(Recipe, OmegaConf.to_container(cfg.dataset.prepare, resolve=True))
    settings = PrepareSettings(**{field.name: getattr(recipe, field.name) for field in fields(PrepareSettings)})
    settings.check()
    chest = name in ("lidc_idri", "x2ct")
    assert settings.camera == ("x2ct" if chest else "lumbar")
    assert settings.grid == ("x2ct" if chest else "lumbar" if name == "lumbarv_open" else "centre")
    assert (settings.size, settings.spacing) == (128, 2.5 if chest else 2.0)


def test_lumbarv_open_is_split_in_the_papers_proportion() -> None:
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        split = compose("prepare", overrides=["dataset=lumbarv_open"]).dataset.prepare.split
    notes: list[str] = []
    parts = split_patients([f"p{i:04d}" for i in range(1005)], OmegaConf.to_container(split), 0, notes=notes)
    counts = {part: len(members) for part, members in parts.items()}
    assert counts == {"train": 851, "val": 15, "test": 139}
    assert counts["test"] / 1005 == pytest.approx(37 / 268, rel=0.01)
    # What the config says of it.
    comment = (Path(__file__).parents[3] / "configs/dataset/lumbarv_open.yaml").read_text(encoding="utf-8")
    assert "139 and 15 of CTSpine1K's" in comment
