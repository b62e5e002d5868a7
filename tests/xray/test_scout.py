"""Our X-rays against a real one: the study is benchmarks/real_scout.py, its figures are checked here."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "real_scout.py"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec = importlib.util.spec_from_file_location("real_scout", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_registration_finds_a_known_shift_and_scale(study):
    rng = np.random.default_rng(0)
    view = 3 + study.ndimage.gaussian_filter(rng.normal(0, 40, (120, 140)), 5)
    expected = study.Fit(0.0, (12.0, -7.0), (1.02, 0.97))
    # The localizer that shows this view so: its pixels, traced back.
    rows, cols = 480, 500
    positions = [
        ((np.arange(count) - (count - 1) / 2) * pitch - expected.shift[axis]) / expected.scale[axis] / study.PITCH
        + (view.shape[axis] - 1) / 2
        for axis, (count, pitch) in enumerate(zip((rows, cols), study.SCOUT_PITCH, strict=True))
    ]
    scout = study.ndimage.map_coordinates(view, np.meshgrid(*positions, indexing="ij"), order=1, mode="nearest")
    fit = study.register(5 * scout - 400, view)
    assert 0.995 < fit.correlation <= 1
    np.testing.assert_allclose(fit.shift, expected.shift, atol=0.3)
    np.testing.assert_allclose(fit.scale, expected.scale, atol=0.005)


@pytest.mark.real
def test_the_simulated_view_is_the_real_localizer_of_the_same_patient(study, shared_data):
    """Measured where rays pass the patient: arc 0.973, flat panel 0.968, cone 0.952, parallel 0.923, mirrored 0.812."""
    scout, ct = study.load(shared_data)
    scout = study.blurred(scout)
    views = study.simulate(ct)
    fits = {name: study.register(scout, view) for name, view in views.items()}
    correlations = [fits[name].correlation for name in ("parallel", "cone", "slit, flat panel", "slit, arc")]
    np.testing.assert_allclose(correlations, [0.923, 0.952, 0.968, 0.973], atol=0.004)
    # The scanner's own geometry needs no scale: SAD, SID, the pixel's and the voxel's mm agree.
    np.testing.assert_allclose(fits["slit, arc"].scale, (1.0, 1.0), atol=0.015)
    mirrored = study.register(scout[:, ::-1], views["slit, arc"])
    assert mirrored.correlation == pytest.approx(0.812, abs=0.01)
