import numpy as np
import pytest
import torch

from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.calibration import Calibration, Rule
from diffux2ct.evaluation.uncertainty.coverage import Uncertainty, coverage_scores, regions
from diffux2ct.evaluation.uncertainty.spread import CaseSpread, Draws
from diffux2ct.intensity import normalize_hu

WINDOW, SIZE = (-1024.0, 1500.0), 8


def calibration(**scales) -> Calibration:
    model = {"step": 1, "sha256": "a"}
    return Calibration(Rule(), scales, {"voxels": 9}, 2, {}, model, "d", "m", "val", ["p"], ["c"], 0, "fp32")


def case_of(hu: np.ndarray) -> ScoredCase:
    volume = torch.from_numpy(normalize_hu(hu.astype(np.float32), WINDOW))[None]
    return ScoredCase("a", volume, WINDOW, (10.0, 10.0, 10.0))


@pytest.fixture
def spread() -> CaseSpread:
    """Soft tissue with 8 ml of bone; draws 10 HU about the truth (std 14.14), but 100 HU off in the first plane."""
    hu = np.zeros((SIZE,) * 3)
    hu[4:6, 4:6, 4:6] = 500
    off = np.zeros_like(hu)
    off[0] = 100
    draws = [normalize_hu((hu + off + step).astype(np.float32), WINDOW) for step in (-10, 10)]
    support = np.ones((SIZE,) * 3, bool)
    support[:, 0] = False
    return CaseSpread.of(case_of(hu), torch.from_numpy(np.stack(draws)), support)


def test_shares_widths_and_scalars_by_hand(spread):
    # Half width 2 (14.14 + 10) = 48.3: all but the first plane is covered.
    scores = coverage_scores(spread, calibration(voxels=2.0, bone_volume=0.5))
    assert scores["coverage"] == pytest.approx(7 / 8)
    assert scores["coverage_soft"] == pytest.approx((7 * 56 - 8) / (8 * 56 - 8))
    assert scores["coverage_bone"] == scores["coverage_medium_bone"] == 1
    assert scores["coverage_small_bone"] is scores["coverage_metal"] is None
    assert scores["interval_width"] == pytest.approx(2 * 2 * (200**0.5 + 10), rel=1e-3)
    assert scores["spread"] == pytest.approx(200**0.5, rel=1e-3)
    assert scores["coverage_bone_volume"] == 1  # 8 ml in each draw and in truth
    wide = coverage_scores(spread, calibration(voxels=4.2))
    assert wide["coverage"] == 1
    assert "coverage_bone_volume" not in wide
    for key in {**scores, **wide}:
        assert metric_of(key).group == "Uncertainty"


def test_nothing_is_covered_without_a_calibration(spread):
    assert set(coverage_scores(spread, None)) == {"spread", "spread_rank"}


def test_error_is_compared_with_spread_where_rays_reach(spread):
    scored = Uncertainty(Draws(2, {}), None, "not calibrated")
    scored.score(spread)
    about = scored.about()
    assert about["reached_by_rays"] == 7 / 8
    (only,) = about["error_against_spread"]
    assert only["share"] == 1
    assert only["spread"] == pytest.approx(200**0.5, rel=1e-3)
    assert only["error"] == pytest.approx((100**2 / 8) ** 0.5, rel=1e-3)
    assert about["spread_over_error"] == pytest.approx(only["spread"] / only["error"])
    np.testing.assert_array_equal(scored.half_width(spread), np.full((SIZE,) * 3, 14))
    calibrated = Uncertainty(Draws(2, {}), calibration(voxels=2.0))
    np.testing.assert_array_equal(calibrated.half_width(spread), np.full((SIZE,) * 3, 48))


def test_a_spread_that_grows_with_the_error_ranks_as_it_does():
    rng = np.random.default_rng(0)
    std = rng.uniform(1, 100, (SIZE,) * 3)
    for truth, rank in ((std, 1.0), (100 - std, -1.0)):
        draws = np.stack([normalize_hu((sign * std).astype(np.float32), WINDOW) for sign in (-1, 1)])
        case = CaseSpread.of(case_of(truth), torch.from_numpy(draws), None)
        assert coverage_scores(case, None)["spread_rank"] == pytest.approx(rank, abs=1e-3)


def test_regions_are_tissues_pieces_of_bone_by_size_and_labels(tmp_path):
    hu = np.full((SIZE,) * 3, -1000)
    hu[0, 0, 0] = 300  # 1 ml
    hu[4:8, 4:8, 4:8] = 300  # 64 ml
    labels = np.zeros((SIZE,) * 3, np.uint8)
    labels[4:8, 4:8, 4:8] = 22  # L3
    np.save(tmp_path / "labels.npy", labels)
    case = case_of(hu)
    found = regions(ScoredCase("a", case.volume, WINDOW, case.spacing, tmp_path))
    sums = {name: int(mask.sum()) for name, mask in found.items() if mask.any()}
    assert sums == {"air": 447, "bone": 65, "medium_bone": 1, "large_bone": 64, "label_spine": 64}
