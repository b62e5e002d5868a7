import json

import numpy as np
import pytest
import SimpleITK as sitk
from omegaconf import OmegaConf
from tests.cli.tiny_run import composed, reconstruct

from diffux2ct.cli.drr import run as synthesize
from diffux2ct.cli.reconstruct import check_cameras
from diffux2ct.data.io.camera_file import read_camera_files
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import camera_preset


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A CT that is not centred at 0, with a bright ball off its middle, and X-rays of it."""
    folder = tmp_path_factory.mktemp("scan")
    z, y, x = (np.indices((32, 32, 32)) - 15.5) * 8.0
    hu = np.where((z - 40) ** 2 + (y + 30) ** 2 + (x - 50) ** 2 < 30**2, 1000, -1000).astype(np.int16)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((8.0, 8.0, 8.0))
    image.SetOrigin((-24.0, 76.0, 1000.0))
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    for name, overrides in {
        "drr": ["size=32", "spacing=8"],
        "small": ["size=32", "spacing=2"],
        "x2ct": ["size=32", "spacing=8", "camera=x2ct", "output=max", "shift=[0,0,9]"],
    }.items():
        synthesize(composed("drr", f"ct={folder / 'ct.nii.gz'}", f"out={folder / name}", *overrides))
    return folder


def test_the_ct_lies_where_camera_json_says_that_the_scan_lay(run_folder, scan, tmp_path, capsys):
    """The model's voxels are twice as large as those that were X-rayed: the cube's centre counts."""
    ct = sitk.ReadImage(str(scan / "ct.nii.gz"))
    image = reconstruct(run_folder, scan / "drr", tmp_path / "out")
    middles = [
        volume.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in volume.GetSize()])
        for volume in (ct, image)
    ]
    np.testing.assert_allclose(middles[1], middles[0], atol=1e-3)
    np.testing.assert_allclose(middles[0], (100, 200, 1124), atol=1e-3)
    record = json.loads((tmp_path / "out" / "reconstruct.json").read_text())
    assert record["origin_source"] == "camera.json"
    np.testing.assert_allclose(record["origin"], [-20, 80, 1004], atol=1e-3)
    assert record["notes"] == []
    assert "(position: camera.json)" in capsys.readouterr().out


def test_a_given_origin_wins_and_an_unknown_one_is_said_to_be(run_folder, scan, xrays, tmp_path):
    image = reconstruct(run_folder, scan / "drr", tmp_path / "a", "origin=[1,2.5,-3]")
    # Files hold the origin as seen from RAS, in float32.
    np.testing.assert_allclose(image.GetOrigin(), (1, 2.5, -3), atol=1e-4)
    assert json.loads((tmp_path / "a" / "reconstruct.json").read_text())["origin_source"] == "given"
    reconstruct(run_folder, xrays, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "reconstruct.json").read_text())
    assert record["origin_source"] == "arbitrary: centred at 0"
    assert record["origin"] == [-120.0] * 3
    with pytest.raises(UserError, match="origin=3: give three numbers"):
        reconstruct(run_folder, xrays, tmp_path / "c", "origin=3")


def test_xrays_that_camera_json_tells_to_be_wrong_are_refused(run_folder, scan, tmp_path):
    drr, small = scan / "drr", scan / "small"
    exchanged = [f"frontal={drr / 'lateral.npy'}", f"lateral={drr / 'frontal.npy'}"]
    with pytest.raises(UserError, match="given as frontal, but .* the lateral view"):
        reconstruct(run_folder, drr, tmp_path / "out", *exchanged)
    with pytest.raises(
        UserError, match="a cube of 64 x 64 x 64 mm, this model makes one of 256 x 256 x 256 mm"
    ):
        reconstruct(run_folder, small, tmp_path / "out")
    with pytest.raises(UserError, match="different cubes"):
        reconstruct(run_folder, drr, tmp_path / "out", f"lateral={small / 'lateral.npy'}")
    assert not (tmp_path / "out").exists()


def test_another_camera_and_a_moved_patient_are_warned_of(run_folder, scan, tmp_path, capsys):
    reconstruct(run_folder, scan / "x2ct", tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "reconstruct.json").read_text())["notes"]
    assert [f"warning: {note}" for note in notes] == capsys.readouterr().out.splitlines()[-4:-2]
    assert "camera x2ct, but the model was trained on lumbar" in notes[0]
    assert "turned or shifted" in notes[1]


def test_a_camera_that_changed_behind_its_name_is_warned_of(scan, tmp_path):
    def notes(name, trained):
        described = {"format": 1, "size": 16, "preset": name, "camera": trained}
        (tmp_path / "dataset.json").write_text(json.dumps(described))
        (tmp_path / "manifest.csv").touch()
        dataset = OmegaConf.create({"root": str(tmp_path), "xray_normalization": "max"})
        folder = scan / ("drr" if name == "lumbar" else name)
        views = read_camera_files({view: folder / f"{view}.npy" for view in VIEWS})
        return [
            note
            for note in check_cameras(views, 16, [16.0] * 3, dataset)
            if "camera x2ct" in note or "lumbar" in note
        ]

    # Pixels of another size on the same panel are no other camera.
    assert notes("lumbar", camera_preset("lumbar", 16, 16.0).to_dict()) == []
    x2ct = camera_preset("x2ct", 16, 16.0).to_dict()
    assert notes("x2ct", x2ct) == []
    old = {key: value for key, value in x2ct.items() if key != "reverse"}
    (note,) = notes("x2ct", old)
    assert note.endswith("camera x2ct, but the model was trained on reverse=False (these: True)")
    (note,) = notes("x2ct", x2ct | {"sad": 600.0})
    assert note.endswith("sad=600.0 (these: 541.0)")
    assert notes("x2ct", None) == []


def test_relative_values_are_refused_where_absolute_ones_are_needed(scan):
    dataset = OmegaConf.create(
        {"root": "none", "xray_normalization": "fixed", "generate": {"camera": "x2ct"}}
    )
    views = read_camera_files({view: scan / "x2ct" / f"{view}.npy" for view in VIEWS})
    with pytest.raises(UserError, match="output=max"):
        check_cameras(views, 16, [16.0] * 3, dataset)
