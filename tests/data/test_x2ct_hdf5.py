import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffux2ct.data.dataset import PreparedDataset
from diffux2ct.data.prepare_settings import PrepareSettings
from diffux2ct.data.sources import discover
from diffux2ct.data.x2ct_exchange import SETTINGS, export_x2ct, import_x2ct, orientation
from diffux2ct.data.x2ct_hdf5 import average_to, read_x2ct, read_x2ct_ct, to_8bit, write_x2ct, x2ct_views
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS

SIZE, STEP = 16, 20.0  # a cube of 320 mm


def body() -> np.ndarray:
    """HU of something that looks different from every side: an off-centre torso with one bright bone in a corner."""
    z, y, x = np.mgrid[:SIZE, :SIZE, :SIZE] / (SIZE - 1)
    hu = np.full((SIZE,) * 3, -1024.0)
    hu[(np.hypot((y - 0.5) / 0.35, (x - 0.5) / 0.42) < 1) & (z > 0.1)] = 0
    hu[12, 11, 4] = 1200  # superior, posterior, right
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
    assert scan.scales is None  # lost
    assert scan.xrays is not None
    views = x2ct_views(hu, (STEP,) * 3, SIZE)
    for view in VIEWS:
        np.testing.assert_allclose(scan.xrays[view], views[view] / views[view].max(), atol=1.01 / 255)
    ct = read_x2ct_ct(tmp_path / "a/ct_xray_data.h5")
    np.testing.assert_array_equal(ct.hu, hu)
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
    assert (scan.spacing, scan.origin, scan.attrs["patient"]) == ((STEP,) * 3, (1.0, 2.0, 3.0), "p")
    assert scan.xrays is not None
    assert scan.scales is not None
    for view in VIEWS:
        scale = scan.scales[view]
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
    for name in names:
        published(tmp_path / f"raw/LIDC-HDF5-256/{name}/ct_xray_data.h5", body())
    (tmp_path / "raw/train.txt").write_text("\n".join([names[0], *names[2:]]))
    (tmp_path / "raw/test.txt").write_text(names[1] + "\n")
    (tmp_path / "raw/broken/").mkdir()
    (tmp_path / "raw/broken/ct_xray_data.h5").write_bytes(b"\x89HDF")
    out = tmp_path / "out"
    settings = replace(SETTINGS, size=8, spacing=40.0)
    options = {"settings": settings, "split": "official", "progress": False}
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
    with pytest.raises(UserError, match="imported with other settings"):
        import_x2ct(tmp_path / "raw", out, "x2ct", xrays="rendered", **options)
    assert not (out / ".importing").exists()


def test_export_then_import_is_the_same_data_set(phantoms: Path, tmp_path: Path) -> None:
    report = export_x2ct(phantoms, tmp_path / "h5", progress=False)
    assert report.written == 10
    assert (tmp_path / "h5/train.txt").read_text().split() == report.split["train"]
    back = import_x2ct(
        tmp_path / "h5",
        tmp_path / "back",
        "back",
        settings=PrepareSettings(size=16, spacing=16.0),
        split="official",
        progress=False,
    )
    assert back.split == report.split
    for case_id in report.split["train"]:
        before, after = phantoms / "cases" / case_id, tmp_path / "back/cases" / case_id
        for name in ("volume", "labels"):
            np.testing.assert_array_equal(np.load(after / f"{name}.npy"), np.load(before / f"{name}.npy"))
        old, new = (json.loads((folder / "case.json").read_text()) for folder in (before, after))
        assert (new["patient"], new["origin"], new["spacing"]) == (
            old["patient"],
            old["origin"],
            old["spacing"],
        )
        for view in VIEWS:
            image = np.load(before / f"{view}.npy")
            np.testing.assert_allclose(np.load(after / f"{view}.npy"), image, atol=0.51 * image.max() / 255)
            assert new[f"{view}_scale"] == pytest.approx(old[f"{view}_scale"], rel=1e-6)
    # And once more out: the same bytes of pixels.
    export_x2ct(tmp_path / "back", tmp_path / "h5b", progress=False)
    for case_id in report.split["test"]:
        with (
            h5py.File(tmp_path / f"h5/{case_id}/ct_xray_data.h5") as one,
            h5py.File(tmp_path / f"h5b/{case_id}/ct_xray_data.h5") as two,
        ):
            for key in ("ct", "xray1", "xray2", "ori_size", "spacing"):
                np.testing.assert_array_equal(one[key][()], two[key][()])
    assert discover("x2ct", tmp_path / "h5").split == {k: sorted(v) for k, v in report.split.items()}


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
    assert any("look flipped against their CT, e.g. s1" in note for note in report.notes)


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
