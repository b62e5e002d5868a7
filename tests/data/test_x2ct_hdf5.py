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

from diffux2ct.cli.prepare import run as prepare_command
from diffux2ct.data.case_writer import finish_dataset, write_case
from diffux2ct.data.dataset import PreparedDataset
from diffux2ct.data.scan_reader import read_scan
from diffux2ct.data.sources import RawCase, discover
from diffux2ct.data.x2ct_case import orientation
from diffux2ct.data.x2ct_exchange import SETTINGS, export_x2ct, import_x2ct, survey_x2ct
from diffux2ct.data.x2ct_hdf5 import average_to, read_x2ct, read_x2ct_ct, to_8bit, write_x2ct, x2ct_views
from diffux2ct.data.x2ct_plan import SPLIT
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS

SIZE, STEP = 16, 20.0  # a cube of 320 mm


def body(number: int = 0) -> np.ndarray:
    """HU of something that looks different from every side: an off-centre torso with one bright bone in a corner.

    number: tells one body from another.
    """
    z, y, x = np.mgrid[:SIZE, :SIZE, :SIZE] / (SIZE - 1)
    hu = np.full((SIZE,) * 3, -1024.0)
    hu[(np.hypot((y - 0.5) / 0.35, (x - 0.5) / 0.42) < 1) & (z > 0.1)] = 0
    hu[12, 11, 4] = 1200 - number  # superior, posterior, right
    hu[3:9, 4:7, 9:12] = -800  # a lung, anterior left
    return np.round(hu).astype(np.int16)


def published(path: Path, hu: np.ndarray, views: dict[str, np.ndarray] | None = None) -> Path:
    """A file as X2CT-GAN publishes it, written here from what its code says: 1 mm, z and image rows from the top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    views = views or x2ct_views(hu, (STEP,) * 3, SIZE)
    with h5py.File(path, "w") as file:
        file["ct"] = (hu[::-1] + 1024).astype(np.int16)
        file["ori_size"] = np.int64(320)
        file["spacing"] = [1.0, 0.9999, 1.0001]
        for name, view in (("xray1", "frontal"), ("xray2", "lateral")):
            file[name] = (views[view] / views[view].max() * 255).astype(np.uint8)[::-1]
    return path


def test_reads_the_published_file(tmp_path: Path) -> None:
    hu = body()
    scan = read_x2ct(published(tmp_path / "a/ct_xray_data.h5", hu))
    np.testing.assert_array_equal(scan.hu, hu)
    assert scan.spacing == (STEP, STEP, STEP)
    assert scan.origin == (-150.0, -150.0, -150.0)
    assert scan.header.scales is None  # lost
    assert scan.xrays is not None
    views = x2ct_views(hu, (STEP,) * 3, SIZE)
    for view in VIEWS:
        np.testing.assert_allclose(scan.xrays[view], views[view] / views[view].max(), atol=1.01 / 255)
    ct = read_x2ct_ct(tmp_path / "a/ct_xray_data.h5")
    np.testing.assert_array_equal(ct.hu, hu)
    assert read_scan(RawCase("a", tmp_path / "a/ct_xray_data.h5"), None).meta == ct.meta
    assert ct.centre == (0.0, 0.0, 0.0)
    # Its 256 voxels a side are averaged down, the field of view stays.
    half = read_x2ct(tmp_path / "a/ct_xray_data.h5", size=SIZE // 2)
    assert half.spacing == (2 * STEP,) * 3
    blocks = hu.reshape(8, 2, 8, 2, 8, 2).mean((1, 3, 5))
    np.testing.assert_allclose(half.hu, blocks, atol=0.51)
    assert half.xrays is not None
    assert half.xrays["frontal"].shape == (8, 8)


def test_its_views_are_from_behind_and_from_the_left() -> None:
    """Two bones on one line of sight's depth: the one nearer the source is drawn larger, farther from the middle."""
    hu = np.full((32, 32, 32), -1024, np.int16)
    hu[24, 28, 20] = hu[8, 3, 20] = 3000  # superior: posterior; inferior: anterior; both to the Left
    frontal = x2ct_views(hu, (10.0,) * 3, 64)["frontal"]
    back, front = np.argmax(frontal[32:].max(0)), np.argmax(frontal[:32].max(0))
    assert back > front > 32
    hu = np.full((32, 32, 32), -1024, np.int16)
    hu[24, 20, 28] = hu[8, 20, 3] = 3000  # superior: Left; inferior: Right; both posterior
    lateral = x2ct_views(hu, (10.0,) * 3, 64)["lateral"]
    left, right = np.argmax(lateral[32:].max(0)), np.argmax(lateral[:32].max(0))
    assert left > right > 32


def test_write_then_read_gives_the_same(tmp_path: Path) -> None:
    hu, views = body(), x2ct_views(body(), (STEP,) * 3, SIZE)
    labels = (hu > 1000).astype(np.uint8)
    path = write_x2ct(
        tmp_path / "c/ct_xray_data.h5",
        hu,
        (STEP,) * 3,
        views,
        origin=(1, 2, 3),
        labels=labels,
        attrs={"patient": "p"},
    )
    scan = read_x2ct(path)
    np.testing.assert_array_equal(scan.hu, hu)
    np.testing.assert_array_equal(scan.labels, labels)
    assert (scan.spacing, scan.origin, scan.header.attrs["patient"]) == ((STEP,) * 3, (1.0, 2.0, 3.0), "p")
    assert scan.xrays is not None
    assert scan.header.scales is not None
    for view in VIEWS:
        scale = scan.header.scales[view]
        np.testing.assert_allclose(scan.xrays[view] * scale, views[view], atol=0.501 * scale / 255)
        eight, again = to_8bit(views[view]), to_8bit(scan.xrays[view] * scale)
        np.testing.assert_array_equal(eight[0], again[0])
    assert sorted(p.name for p in path.parent.iterdir()) == ["ct_xray_data.h5"]


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
    assert any(
        "LIDC-IDRI-0442 is in the lists of both train and test; put to test" in note for note in report.notes
    )
    case = json.loads((out / "cases" / names[0] / "case.json").read_text())
    assert (case["patient"], case["xrays"], case["xrays_scale"]) == ("LIDC-IDRI-0442", "stored", "estimated")
    assert case["views"].endswith("from behind and from the patient's left")
    assert "xrays_look" not in case
    volume = np.load(out / "cases" / names[0] / "volume.npy")
    assert volume.shape == (8, 8, 8)
    assert volume.max() <= 1476
    stored = read_x2ct(tmp_path / f"raw/LIDC-HDF5-256/{names[0]}/ct_xray_data.h5", 8).xrays
    assert stored is not None
    frontal = np.load(out / "cases" / names[0] / "frontal.npy")
    np.testing.assert_allclose(
        frontal / frontal.max(), stored["frontal"] / stored["frontal"].max(), atol=1e-6
    )
    assert len(PreparedDataset(out, "test", window=(-1024, 1476))) == 2
    # Again: nothing to do. Other settings: refused.
    again = import_x2ct(tmp_path / "raw", out, "x2ct", **options)
    assert (again.written, again.found) == (0, 4)
    assert json.loads((out / "split_patients.json").read_text())["test"] == ["LIDC-IDRI-0442"]
    assert json.loads((out / "summary.json").read_text())["scans"] == 4
    with pytest.raises(UserError, match="set spacing=40"):
        import_x2ct(
            tmp_path / "raw", tmp_path / "o", "x2ct", settings=replace(settings, spacing=2.5), progress=False
        )
    with pytest.raises(UserError, match="prepared with other settings, xrays=stored"):
        import_x2ct(tmp_path / "raw", out, "x2ct", xrays="rendered", **options)
    assert not (out / ".importing").exists()


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
        for key in (
            "patient",
            "origin",
            "spacing",
            "window",
            "camera",
            "camera_geometry",
            "poses",
            "projector",
        ):
            assert new[key] == old[key], key
        assert new["labels_are_own"] == old.get("labels_are_own", False)
        for view in VIEWS:
            image = np.load(folder / f"{view}.npy")
            np.testing.assert_allclose(np.load(twin / f"{view}.npy"), image, atol=0.51 * image.max() / 255)
            assert new[f"{view}_scale"] == pytest.approx(old[f"{view}_scale"], rel=1e-6)


def test_export_then_import_is_the_same_data_set(phantoms: Path, tmp_path: Path) -> None:
    report = export_x2ct(phantoms, tmp_path / "h5", progress=False)
    assert report.written == 10
    assert report.notes == []
    assert (tmp_path / "h5/train.txt").read_text().split() == report.split["train"]
    command(f"raw={tmp_path / 'h5'}", f"out={tmp_path / 'back'}")
    assert_same_cases(phantoms, tmp_path / "back")
    # And once more out: the same bytes of pixels.
    export_x2ct(tmp_path / "back", tmp_path / "h5b", progress=False)
    for case_id in report.split["test"]:
        with (
            h5py.File(tmp_path / f"h5/{case_id}/ct_xray_data.h5") as one,
            h5py.File(tmp_path / f"h5b/{case_id}/ct_xray_data.h5") as two,
        ):
            for key in ("ct", "xray1", "xray2", "ori_size", "spacing"):
                np.testing.assert_array_equal(np.asarray(one[key]), np.asarray(two[key]))
    assert discover("x2ct", tmp_path / "h5").split == {k: sorted(v) for k, v in report.split.items()}
    # X-rays of another camera are said to be of that.
    export_x2ct(phantoms, tmp_path / "theirs", views="x2ct", progress=False)
    command(f"raw={tmp_path / 'theirs'}", f"out={tmp_path / 'x'}")
    case = json.loads((tmp_path / "x/cases" / report.split["test"][0] / "case.json").read_text())
    assert (case["camera"], case["camera_geometry"]["sad"], case["camera_geometry"]["reverse"]) == (
        "x2ct",
        541.0,
        True,
    )


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A prepared folder with two crops a patient, odd numbers, poses, and values above X2CT-GAN's window."""
    root, split = (
        tmp_path / "crops",
        {"train": ["p0_c00", "p0_c01", "p2"], "val": ["p1_c00", "p1_c01"], "test": []},
    )
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
    finish_dataset(
        root, "crops", split, {"spacing": 7 / 3, "size": SIZE, "window": [-1000, 1500], "camera": "lumbar"}
    )
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
            tmp_path / "h5",
            settings=replace(SETTINGS, seed=seed),
            split={"test": 1, "val": 1},
            progress=False,
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
    report = import_x2ct(
        tmp_path / "h5", tmp_path / "c", "x", asked=["size"], settings=replace(SETTINGS, size=16)
    )
    assert [source for source, _ in report.bad] == ["odd/ct_xray_data.h5"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("dataset.prepare.pose_jitter={degrees: 3, mm: 5}", "pose_jitter"),
        ("dataset.prepare.grid=lumbar", "grid=lumbar"),
        ("dataset.prepare.remove_couch=true", "remove_couch=True"),
        ("dataset.prepare.instrument={levels: [1, 4]}", "instrument"),
        ("dataset.prepare.rescale=[1,0]", "rescale"),
        ("dataset.prepare.labels=ours", "labels=ours"),
        ("dataset.prepare.attenuation=water", "attenuation=water"),
        ("dataset.prepare.projector=joseph", "projector=joseph"),
        ("dataset.prepare.origins=[A]", "origins"),
        ("crops=3", "crops=3"),
        ("dataset.prepare.test_crops=2", "test_crops=2"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, override: str, key: str) -> None:
    published(tmp_path / "raw/s1/ct_xray_data.h5", body())
    for dry_run in ("true", "false"):
        with pytest.raises(UserError, match=f"^{key}.* has no effect on X2CT-GAN's .*leave it out") as error:
            command(f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", f"dry_run={dry_run}", override)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_same_scan_under_two_names_and_two_runs(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name, number in (("a b", 0), ("a_b", 1), ("c", 2), ("d", 2)):
        published(raw / name / "ct_xray_data.h5", body(number))
    with h5py.File(raw / "a_b/ct_xray_data.h5", "a") as file:
        del file["spacing"]
    options: dict[str, Any] = {
        "settings": replace(SETTINGS, size=SIZE, spacing=STEP),
        "split": {"test": 1},
        "progress": False,
    }
    rows, told = survey_x2ct(raw, **options)
    report = import_x2ct(raw, out, "x", **options)
    # Two scans whose names are made safe alike are two cases.
    assert sorted(path.name for path in (out / "cases").iterdir()) == ["a_b", "a_b_s2", "c"]
    bone = [np.load(out / f"cases/{name}/volume.npy")[12, 11, 4] for name in ("a_b", "a_b_s2", "c")]
    assert bone == [1200, 1199, 1198]
    twin = str(Path("d/ct_xray_data.h5"))
    assert report.not_used == [
        (twin, f"same scan as {Path('c/ct_xray_data.h5')} of patient c, which is used")
    ]
    assert (told.not_used, told.split, told.notes) == (report.not_used, report.split, report.notes)
    assert [row["case"] for row in rows] == ["a_b", "a_b_s2", "c"]
    assert any("does not tell its size in mm" in note for note in report.notes)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = import_x2ct(raw, out, "x", **options)
    assert (again.written, again.found) == (0, 3)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_flipped_xrays_are_reported(tmp_path: Path) -> None:
    views = x2ct_views(body(), (STEP,) * 3, SIZE)
    assert orientation(views["frontal"][:, ::-1], views["frontal"]) == "mirrored"
    assert orientation(views["lateral"][::-1], views["lateral"]) == "upside down"
    assert orientation(views["lateral"], views["lateral"]) == "as the CT"
    published(tmp_path / "raw/s1/ct_xray_data.h5", body(), {k: v[::-1] for k, v in views.items()})
    settings = replace(SETTINGS, size=16, spacing=STEP)
    report = import_x2ct(
        tmp_path / "raw", tmp_path / "out", "x", settings=settings, split={"test": 1.0}, progress=False
    )
    assert any("s1/ct_xray_data.h5: X-rays look flipped against their CT" in note for note in report.notes)


def test_average_keeps_the_mean_and_the_place() -> None:
    ramp = np.arange(20.0)
    average = average_to(ramp, 8, Path("x"))
    assert average.mean() == pytest.approx(ramp.mean())
    # Cells are 2.5 wide; within a voxel the value is constant, which is worth up to a twentieth here.
    np.testing.assert_allclose(average, 2.5 * (np.arange(8) + 0.5) - 0.5, atol=0.0501)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ct": None}, "no dataset 'ct'"),
        ({"ct": np.zeros((4, 4, 5))}, "not a cube"),
        ({"ct": np.full((4, 4, 4), np.nan)}, "no numbers"),
        ({"ct": np.full((4, 4, 4), -1000.0)}, "HU [+] 1024 is expected"),
        ({"ct": np.linspace(0, 1, 64).reshape(4, 4, 4)}, "HU [+] 1024 is expected"),
        ({"spacing": np.array([1.0, 2.0, 1.0])}, "not a cube"),
        ({"xray1": np.zeros((2, 2, 2))}, "xray1 is no grey image"),
    ],
)
def test_bad_files_end_in_one_line(tmp_path: Path, change: dict, message: str) -> None:
    path = published(tmp_path / "s/ct_xray_data.h5", body())
    with h5py.File(path, "a") as file:
        for name, value in change.items():
            del file[name]
            if value is not None:
                file[name] = value
    with pytest.raises(UserError, match=message) as error:
        read_x2ct(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def huge(file: h5py.File) -> None:
    del file["ct"]
    file.create_dataset("ct", (60000,) * 3, np.int16, chunks=(16,) * 3)


def text(name: str):
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = "much"

    return change


def attribute(name: str, value, of: str = "/"):
    return lambda file: file[of].attrs.__setitem__(name, value)


def elsewhere(link):
    def change(file: h5py.File) -> None:
        del file["ct"]
        file["ct"] = link

    return change


def external(file: h5py.File) -> None:
    values = np.asarray(file["ct"])
    del file["ct"]
    aside = Path(file.filename).with_name("values.bin")
    aside.write_bytes(values.tobytes())
    file.create_dataset("ct", values.shape, values.dtype, external=[(str(aside), 0, values.nbytes)])


def virtual(file: h5py.File) -> None:
    del file["ct"]
    layout = h5py.VirtualLayout((SIZE,) * 3, np.int16)
    layout[:] = h5py.VirtualSource(
        str(Path(file.filename).parents[1] / "a/ct_xray_data.h5"), "ct", (SIZE,) * 3
    )
    file.create_virtual_dataset("ct", layout)


def group(file: h5py.File) -> None:
    del file["xray1"]
    file.create_group("xray1")


MUTATIONS = [
    (huge, "60000 voxels per side"),
    (text("ori_size"), "ori_size is not 1 or 3 numbers"),
    (text("spacing"), "spacing is not"),
    (text("xray2"), "xray2 is no grey image"),
    (attribute("scale", "big", "xray1"), None),  # one scale alone is none
    (attribute("origin", [1.0, 2.0]), "origin is not 3 numbers"),
    (attribute("origin", [1.0, 2.0, np.nan]), "origin is not 3 numbers"),
    (attribute("origin", h5py.Empty("f")), "origin is not 3 numbers"),
    (attribute("patient", [1, 2]), "patient is no text"),
    (attribute("patient", np.arange(3.0)), "patient is no text"),
    (attribute("camera", "{"), "camera is damaged"),
    (attribute("camera", "[1]"), "camera describes none"),
    (
        attribute("camera", '{"kind": "cone", "sad": "a", "sid": 1, "rows": 1, "cols": 1, "pitch": [1, 1]}'),
        "camera",
    ),
    (attribute("window", "[1, 0]"), "window is not"),
    (attribute("poses", "{}"), "poses is damaged"),
    (attribute("unknown", np.arange(9)), None),
    (elsewhere(h5py.ExternalLink("../a/ct_xray_data.h5", "ct")), "ct is a link"),
    (elsewhere(h5py.SoftLink("/xray1")), "ct is a link"),
    (elsewhere(h5py.SoftLink("/nowhere")), "ct is a link"),
    (external, "another file's data"),
    (virtual, "another file's data"),
    (group, "xray1 is a link, a group"),
]


def test_files_that_cannot_be_used_do_not_stop_the_others(tmp_path: Path) -> None:
    raw, expected = tmp_path / "raw", {}
    published(raw / "a/ct_xray_data.h5", body())
    for number, (change, message) in enumerate(MUTATIONS, 1):
        path = published(raw / f"m{number:02d}/ct_xray_data.h5", body(number))
        with h5py.File(path, "a") as file:
            change(file)
        if message is not None:
            expected[str(path.relative_to(raw))] = message
            with pytest.raises(UserError, match=message):
                read_x2ct(path)
    options: dict[str, Any] = {
        "settings": replace(SETTINGS, size=SIZE, spacing=STEP),
        "split": {"test": 1},
        "progress": False,
    }
    report = import_x2ct(raw, tmp_path / "out", "x", **options)
    assert report.written == 1 + sum(message is None for _, message in MUTATIONS)
    assert {source for source, _ in report.bad} == set(expected)
    for source, reason in report.bad:
        assert expected[source] in reason
        assert "\n" not in reason
    assert survey_x2ct(raw, **options)[1].bad == report.bad


def test_damaged_bytes_end_in_one_line(tmp_path: Path) -> None:
    """Whatever bytes of the structure or the values are damaged, a file is a sound scan or refused in one line."""
    attrs = {"patient": "p", "window": [-1000, 1500]}
    views = x2ct_views(body(), (STEP,) * 3, SIZE)
    path = write_x2ct(
        tmp_path / "f/ct_xray_data.h5", body(), (STEP,) * 3, views, origin=(1, 2, 3), attrs=attrs
    )
    whole, lines = path.read_bytes(), []
    structure = np.r_[0:2500, 11000 : len(whole)]  # between lie the voxels
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: generator.integers(1, len(whole))] if generator.random() < 0.2 else whole)
        for place in generator.choice(structure, generator.integers(1, 9)):
            damaged[place % len(damaged)] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            scan = read_x2ct(path)
        except UserError as error:
            lines.append(str(error))
        else:
            assert scan.hu.shape[0] <= 512
            assert np.isfinite([*scan.origin, *scan.spacing]).all()
            assert min(scan.spacing) > 0
    assert 10 < len(lines) < 150
    assert not any("\n" in line for line in lines)


def test_defaults_are_the_preset_s(phantoms: Path) -> None:
    """What differs from ``SETTINGS`` counts as asked for, so that they must be what dataset=x2ct says."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        recipe = compose("prepare", overrides=["dataset=x2ct"]).dataset.prepare
    assert {key: recipe[key] for key in SETTINGS.as_dict()} == SETTINGS.as_dict()
    assert dict(recipe.split) == SPLIT


def test_other_errors(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(tmp_path / "s/ct_xray_data.h5", body())
    with pytest.raises(UserError, match="size=32 is more than the 16 stored"):
        read_x2ct(path, 32)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match="damaged"):
        read_x2ct(path)
    with pytest.raises(UserError, match="no prepared folder"):
        export_x2ct(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is the prepared folder itself"):
        export_x2ct(phantoms, phantoms)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'diffux2ct\[x2ct\]'"):
        read_x2ct(path)


def test_command(phantoms: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "export_x2ct.py"
    command = [sys.executable, str(script), f"data={phantoms}", f"out={tmp_path / 'h5'}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "10 cases (train 6, val 1, test 3) written" in done.stdout
    with pytest.raises(UserError, match="views=pa: choose folder"):
        export_x2ct(phantoms, tmp_path / "h5", views="pa")
