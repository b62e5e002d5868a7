import json

import numpy as np
import pytest
import SimpleITK as sitk
from tests.cli.tiny_run import reconstruct

from diffux2ct.errors import UserError


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
    with pytest.raises(UserError, match="origin=3: not three numbers"):
        reconstruct(run_folder, xrays, tmp_path / "c", "origin=3")


def test_xrays_that_camera_json_tells_to_be_wrong_are_refused(run_folder, scan, tmp_path):
    drr, small = scan / "drr", scan / "small"
    exchanged = [f"frontal={drr / 'lateral.npy'}", f"lateral={drr / 'frontal.npy'}"]
    with pytest.raises(UserError, match="given as frontal, but .* the lateral view"):
        reconstruct(run_folder, drr, tmp_path / "out", *exchanged)
    with pytest.raises(UserError, match="a cube of 64 x 64 x 64 mm, this model makes one of 256 x 256 x 256 mm"):
        reconstruct(run_folder, small, tmp_path / "out")
    with pytest.raises(UserError, match="different cubes"):
        reconstruct(run_folder, drr, tmp_path / "out", f"lateral={small / 'lateral.npy'}")
    assert not (tmp_path / "out").exists()


def test_another_camera_and_a_moved_patient_are_warned_of(run_folder, scan, tmp_path, capsys):
    reconstruct(run_folder, scan / "x2ct", tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "reconstruct.json").read_text())["notes"]
    assert [f"warning: {note}" for note in notes] == capsys.readouterr().out.splitlines()[-5:-3]
    assert "camera x2ct, but the model was trained on lumbar" in notes[0]
    assert "turned or shifted" in notes[1]
