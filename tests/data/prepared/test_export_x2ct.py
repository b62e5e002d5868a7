"""Whole data sets to and from X2CT-GAN's files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from tests.data.io.x2ct.x2ct_files import SIZE, STEP, body, import_x2ct, published, survey_x2ct

from diffux2ct.cli.prepare import run as prepare_command
from diffux2ct.data.io.x2ct.file import x2ct_views
from diffux2ct.data.preparation.stored import SETTINGS
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.export_x2ct import export_x2ct
from diffux2ct.data.prepared.writer import finish_dataset, write_case
from diffux2ct.data.sources import discover
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS


def test_import_takes_lists_and_keeps_xrays(tmp_path: Path) -> None:
    """LIDC-IDRI-0442 is in both of X2CT-GAN's lists: it comes to test with both scans."""
    names = [
        "LIDC-IDRI-0442.20000101.5472.1",
        "LIDC-IDRI-0442.20000101.5405.1",
        "LIDC-IDRI-0936.20000101.5169.2.1",
        "LIDC-IDRI-0520.20000101.30914.1",
    ]
    for i, name in enumerate(names):
        published(tmp_path / f"raw/LIDC-HDF5-256/{name}/ct_xray_data.h5", body(i))
    (tmp_path / "raw/train.txt").write_text("\n".join([names[0], *names[2:]]))
    (tmp_path / "raw/test.txt").write_text(names[1] + "\n")
    (tmp_path / "raw/broken/").mkdir()
    (tmp_path / "raw/broken/ct_xray_data.h5").write_bytes(b"\x89HDF")
    out = tmp_path / "out"
    settings = replace(SETTINGS, size=8, spacing=40.0)
    options: dict[str, Any] = {"settings": settings, "split": "official", "progress": False}
    report = import_x2ct(tmp_path / "raw", out, "x2ct", **options)
    assert (report.written, report.found, len(report.bad)) == (4, 0, 1)
    assert "broken/ct_xray_data.h5" in report.bad[0][0]
    assert {part: len(ids) for part, ids in report.split.items()} == {"train": 2, "val": 0, "test": 2}
    assert report.split["test"] == sorted(names[:2])
    assert any("LIDC-IDRI-0442 is in the lists of both train and test; put to test" in note for note in report.notes)
    case = json.loads((out / "cases" / names[0] / "case.json").read_text())
    assert (case["patient"], case["xrays"], case["xrays_scale"]) == ("LIDC-IDRI-0442", "stored", "estimated")
    assert case["views"].endswith("from behind and from the patient's left")
    assert "xrays_look" not in case
    volume = np.load(out / "cases" / names[0] / "volume.npy")
    assert volume.shape == (8, 8, 8)
    assert volume.max() <= 1476
    truth = x2ct_views(body(), (STEP,) * 3, SIZE)
    for view in VIEWS:
        image = np.load(out / "cases" / names[0] / f"{view}.npy")
        blocks = truth[view].reshape(8, 2, 8, 2).mean((1, 3))
        np.testing.assert_allclose(image / image.max(), blocks / blocks.max(), atol=0.02)
        # The lost scale, estimated from a CT of voxels twice as large.
        assert image.max() == pytest.approx(blocks.max(), rel=0.1)
    assert len(PreparedDataset(out, "test", window=(-1024, 1476))) == 2
    # Again: nothing to do. Other settings: refused.
    again = import_x2ct(tmp_path / "raw", out, "x2ct", **options)
    assert (again.written, again.found) == (0, 4)
    assert json.loads((out / "split_patients.json").read_text())["test"] == ["LIDC-IDRI-0442"]
    assert json.loads((out / "summary.json").read_text())["scans"] == 4
    with pytest.raises(UserError, match="set spacing=40"):
        import_x2ct(tmp_path / "raw", tmp_path / "o", "x2ct", settings=replace(settings, spacing=2.5), progress=False)
    with pytest.raises(UserError, match="prepared with other settings, xrays=stored"):
        import_x2ct(tmp_path / "raw", out, "x2ct", xrays="rendered", **options)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def command(*overrides: str) -> None:
    """``prepare_dataset.py`` with the given settings."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("prepare", overrides=["dataset=x2ct", "workers=1", "contact_sheet=false", *overrides])
    prepare_command(cfg)


def assert_same_cases(before: Path, after: Path) -> None:
    assert json.loads((after / "split.json").read_text()) == json.loads((before / "split.json").read_text())
    old, new = (json.loads((root / "dataset.json").read_text()) for root in (before, after))
    for key in ("preset", "camera", "label_names", "num_cases"):
        assert new[key] == old[key]
    for folder in sorted((before / "cases").iterdir()):
        twin = after / "cases" / folder.name
        for name in ("volume", "labels"):
            np.testing.assert_array_equal(np.load(twin / f"{name}.npy"), np.load(folder / f"{name}.npy"))
        old, new = (json.loads((case / "case.json").read_text()) for case in (folder, twin))
        for key in ("patient", "origin", "spacing", "window", "camera", "camera_geometry", "poses", "projector"):
            assert new[key] == old[key], key
        assert new["labels_are_own"] == old.get("labels_are_own", False)
        for view in VIEWS:
            image = np.load(folder / f"{view}.npy")
            np.testing.assert_allclose(np.load(twin / f"{view}.npy"), image, atol=0.51 * image.max() / 255)
            assert new[f"{view}_scale"] == pytest.approx(old[f"{view}_scale"], rel=1e-6)


def test_export_then_import_is_the_same_data_set(phantoms: Path, tmp_path: Path) -> None:
    split, notes = export_x2ct(phantoms, tmp_path / "h5", progress=False)
    assert sum(map(len, split.values())) == 10
    assert notes == []
    assert (tmp_path / "h5/train.txt").read_text().split() == split["train"]
    command(f"raw={tmp_path / 'h5'}", f"out={tmp_path / 'back'}")
    assert_same_cases(phantoms, tmp_path / "back")
    # And once more out: the same bytes of pixels.
    export_x2ct(tmp_path / "back", tmp_path / "h5b", progress=False)
    for case_id in split["test"]:
        with (
            h5py.File(tmp_path / f"h5/{case_id}/ct_xray_data.h5") as one,
            h5py.File(tmp_path / f"h5b/{case_id}/ct_xray_data.h5") as two,
        ):
            for key in ("ct", "xray1", "xray2", "ori_size", "spacing"):
                np.testing.assert_array_equal(np.asarray(one[key]), np.asarray(two[key]))
    assert discover("x2ct", tmp_path / "h5").split == {k: sorted(v) for k, v in split.items()}
    # X-rays of another camera are said to be of that.
    export_x2ct(phantoms, tmp_path / "theirs", views="x2ct", progress=False)
    command(f"raw={tmp_path / 'theirs'}", f"out={tmp_path / 'x'}")
    case = json.loads((tmp_path / "x/cases" / split["test"][0] / "case.json").read_text())
    assert (case["camera"], case["camera_geometry"]["sad"], case["camera_geometry"]["reverse"]) == ("x2ct", 541.0, True)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A prepared folder with two crops a patient, odd numbers, poses, and values above X2CT-GAN's window."""
    root, split = (tmp_path / "crops", {"train": ["p0_c00", "p0_c01", "p2"], "val": ["p1_c00", "p1_c01"], "test": []})
    for number, case_id in enumerate(case for cases in split.values() for case in cases):
        hu = body(number)
        hu[12, 11, 5] = 1500
        write_case(
            root,
            case_id,
            hu,
            (7 / 3,) * 3,
            (0.1 + number, 0.2, 1 / 3),
            "lumbar",
            labels=(hu > 1000).astype(np.uint8),
            meta={"patient": case_id.split("_")[0], "labels_are_own": True},
            window=(-1000, 1500),
            projector="siddon",
            pose_jitter={"degrees": 2.0, "mm": 3.0},
        )
        path = root / "cases" / case_id / "case.json"
        record = json.loads(path.read_text())
        record["camera_geometry"]["reverse"] = True  # what a preset says today need not be what it said then
        path.write_text(json.dumps(record))
    finish_dataset(root, "crops", split, {"spacing": 7 / 3, "size": SIZE, "window": [-1000, 1500], "camera": "lumbar"})
    return root


def test_round_trip_keeps_what_no_preset_says(crops: Path, tmp_path: Path) -> None:
    export_x2ct(crops, tmp_path / "h5", progress=False)
    command(f"raw={tmp_path / 'h5'}", f"out={tmp_path / 'back'}")
    assert_same_cases(crops, tmp_path / "back")
    assert np.load(tmp_path / "back/cases/p2/volume.npy").max() == 1500
    notes = json.loads((tmp_path / "back/summary.json").read_text())["notes"]
    assert any("by the lists that lie in raw" in note for note in notes)
    assert any("camera=lumbar window=[-1000,1500]" in note for note in notes)


def test_the_crops_of_a_patient_stay_together(crops: Path, tmp_path: Path) -> None:
    export_x2ct(crops, tmp_path / "h5", progress=False)
    # Whatever the lists of scans say,
    (tmp_path / "h5/train.txt").write_text("p0_c00\np2\np1_c00\n")
    (tmp_path / "h5/val.txt").unlink()
    (tmp_path / "h5/test.txt").write_text("p0_c01\np1_c01\n")
    report = import_x2ct(tmp_path / "h5", tmp_path / "a", "x", progress=False)
    assert report.split == {"train": ["p2"], "val": [], "test": ["p0_c00", "p0_c01", "p1_c00", "p1_c01"]}
    assert any("p0 is in the lists of both train and test; put to test" in note for note in report.notes)
    # and when it is drawn.
    for seed in range(4):
        _, drawn = survey_x2ct(
            tmp_path / "h5", settings=replace(SETTINGS, seed=seed), split={"test": 1, "val": 1}, progress=False
        )
        sides = [{case_id.split("_")[0] for case_id in drawn.split[part]} for part in drawn.split]
        assert sorted(name for side in sides for name in side) == ["p0", "p1", "p2"]


def test_what_is_asked_for_holds_and_is_told(crops: Path, tmp_path: Path) -> None:
    export_x2ct(crops, tmp_path / "h5", progress=False)
    raw = f"raw={tmp_path / 'h5'}"
    command(raw, f"out={tmp_path / 'a'}", "size=8", "dataset.prepare.window=[-1000,1000]")
    case = json.loads((tmp_path / "a/cases/p2/case.json").read_text())
    assert (case["size"], case["window"]) == (8, [-1000.0, 1000.0])
    geometry = case["camera_geometry"]
    assert (geometry["rows"], geometry["pitch"][0], geometry["reverse"]) == (8, pytest.approx(7.0), True)
    assert any("labels left out" in note for note in case["notes"])
    with pytest.raises(UserError, match="camera=parallel, but its X-rays were made with lumbar"):
        command(raw, f"out={tmp_path / 'b'}", "dataset.prepare.camera=parallel")
    command(raw, f"out={tmp_path / 'b'}", "dataset.prepare.camera=parallel", "dataset.prepare.xrays=rendered")
    case = json.loads((tmp_path / "b/cases/p2/case.json").read_text())
    assert (case["camera"], case["camera_geometry"]["kind"], case["poses"]) == ("parallel", "parallel", None)
    # One that is made otherwise than the rest cannot stand beside them.
    published(tmp_path / "h5/odd/ct_xray_data.h5", body(9))
    report = import_x2ct(tmp_path / "h5", tmp_path / "c", "x", asked=["size"], settings=replace(SETTINGS, size=16))
    assert [source for source, _ in report.bad] == ["odd/ct_xray_data.h5"]


def test_command(phantoms: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[3] / "scripts" / "export_x2ct.py"
    command = [sys.executable, str(script), f"data={phantoms}", f"out={tmp_path / 'h5'}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "10 cases (train 6, val 1, test 3) written" in done.stdout
    with pytest.raises(UserError, match="views=pa: choose folder"):
        export_x2ct(phantoms, tmp_path / "h5", views="pa")
