"""Through the real preparation: a scan file is prepared, and its case projected again."""

import json

import numpy as np
import pytest

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.writer import write_case
from diffux2ct.errors import UserError
from diffux2ct.evaluation.fidelity.xray_consistency import CaseXrays, residual_scores, unavailable
from diffux2ct.intensity import denormalize_hu

MU = 0.022  # mm^-1 of water


def whole_hu(volume, window) -> np.ndarray:
    return np.round(denormalize_hu(volume[0].numpy(), window)).astype(np.int16)


def test_the_truth_of_a_prepared_folder_has_no_residual(phantoms):
    data = PreparedDataset(phantoms, "test")
    mean = whole_hu(data.mean_volume(), data.window)
    for index, case in enumerate(data.cases):
        xrays = CaseXrays(case.path)
        truth = whole_hu(data[index]["volume"], data.window)
        scores = residual_scores(xrays.residuals(truth))
        assert max(scores.values()) < 1e-5
        floor = residual_scores(xrays.residuals(mean))
        assert min(floor.values()) > 0.05
        assert floor["xray_residual_rms_frontal"] > floor["xray_residual_frontal"]
        assert set(scores) == {
            f"xray_residual_{kind}{view}" for kind in ("", "rms_") for view in ("frontal", "lateral")
        }


@pytest.mark.parametrize(
    ("camera", "projector", "attenuation", "jitter"),
    [
        ("lumbar", "joseph", "plastimatch", None),
        ("x2ct", "siddon", "water", None),
        ("parallel", "joseph", "two_material", None),
        ("lumbar", "siddon", "plastimatch", {"degrees": 4.0, "mm": 5.0}),
    ],
)
def test_every_way_of_making_xrays_is_followed(tmp_path, camera, projector, attenuation, jitter):
    hu = np.full((16, 16, 16), -1000, np.int16)
    hu[3:13, 4:12, 5:12] = 60
    hu[5:9, 6:8, 6:10] = 700
    folder = write_case(
        tmp_path, "a", hu, (8.0,) * 3, (0.0,) * 3, camera,
        projector=projector, attenuation=attenuation, pose_jitter=jitter, pose_seed=3,
    )  # fmt: skip
    residuals = CaseXrays(folder).residuals(np.load(folder / "volume.npy"))
    assert max(residual_scores(residuals).values()) < 1e-5
    assert np.array_equal(residuals["frontal"].stored, np.load(folder / "frontal.npy"))
    moved = CaseXrays(folder).residuals(np.roll(np.load(folder / "volume.npy"), 1, 0))
    assert min(residual_scores(moved).values()) > 0.01


def test_a_slab_of_water_too_much_is_its_line_integral(tmp_path):
    hu = np.full((12, 12, 12), -1000, np.int16)
    hu[:, 3:9] = 0  # six voxels of 5 mm, seen from the front by parallel rays
    folder = write_case(tmp_path, "a", hu, (5.0,) * 3, (0.0,) * 3, "parallel")
    more = hu.copy()
    more[:, 9] = 0
    residuals = CaseXrays(folder).residuals(more)
    assert residuals["frontal"].mean_absolute == pytest.approx(5 * MU, rel=1e-5)
    assert residuals["frontal"].rms == pytest.approx(5 * MU, rel=1e-5)
    # From the side one of twelve columns is longer, by the whole width.
    assert residuals["lateral"].mean_absolute == pytest.approx(60 * MU / 12, rel=1e-5)
    assert residuals["lateral"].rms == pytest.approx(60 * MU / np.sqrt(12), rel=1e-5)
    assert residuals["frontal"].image.shape == (12, 12)


def test_smaller_sizes_are_compared_on_averaged_pixels(phantoms):
    data = PreparedDataset(phantoms, "test", size=8)
    xrays = CaseXrays(data.cases[0].path, data.size)
    truth = whole_hu(data[0]["volume"], data.window)
    residuals = xrays.residuals(truth)
    assert residuals["lateral"].image.shape == (8, 8)
    stored = np.load(data.cases[0].path / "lateral.npy")
    assert np.allclose(residuals["lateral"].stored, stored.reshape(8, 2, 8, 2).mean((1, 3)), atol=1e-5)
    own = residual_scores(residuals)["xray_residual_frontal"]
    floor = residual_scores(xrays.residuals(whole_hu(data.mean_volume(), data.window)))["xray_residual_frontal"]
    assert 1e-5 < own < 0.5 * floor
    with pytest.raises(ValueError, match="8 voxels per side"):
        xrays.residuals(np.zeros((16, 16, 16), np.int16))
    with pytest.raises(UserError, match="does not divide"):
        CaseXrays(data.cases[0].path, 5)


def test_xrays_without_their_scale_are_unavailable(tmp_path):
    folder = write_case(tmp_path, "a", np.zeros((8, 8, 8), np.int16), (8.0,) * 3, (0.0,) * 3, "x2ct")
    record = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    assert unavailable(record) is None
    assert unavailable(record | {"xrays": "stored", "xrays_scale": "stored"}) is None
    record |= {"xrays": "stored", "xrays_scale": "estimated"}
    assert "without their scale" in str(unavailable(record))
    assert "projector" in str(unavailable({**record, "xrays": "rendered", "projector": None}))
    (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="xrays=rendered") as caught:
        CaseXrays(folder)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="prepare the case again"):
        CaseXrays(tmp_path / "cases" / "b")
