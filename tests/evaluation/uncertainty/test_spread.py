import numpy as np
import pytest
import torch
from tests.evaluation.anatomy.test_vertebrae import HEIGHTS, SPACING, paint

from diffux2ct.data.labels import LABELS
from diffux2ct.errors import UserError
from diffux2ct.evaluation.anatomy.bones import fixed_hu_bone
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.spread import CaseSpread, Draws, Spread
from diffux2ct.intensity import normalize_hu

WINDOW = (-1024.0, 1500.0)


def test_mean_and_std_of_draws_in_hu():
    draws = torch.rand(5, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = Spread.of_volumes(draws, WINDOW)
    hu = (draws.numpy().astype(np.float64) + 1) * 1262 - 1024
    np.testing.assert_allclose(made.mean, hu.mean(0), rtol=1e-3, atol=0.01)
    np.testing.assert_allclose(made.std, hu.std(0, ddof=1), rtol=1e-3, atol=0.01)


def test_the_interval_holds_the_truth_from_its_score_on_and_stays_in_the_window():
    spread = Spread(np.array([-1000.0, 0.0, 1400.0]), np.array([0.0, 5.0, 90.0]), np.array([-1024.0, 30.0, 1500.0]))
    scores = spread.scores(10.0)
    np.testing.assert_allclose(scores, [2.4, 2.0, 1.0])
    low, high = spread.interval(2.0, 10.0, WINDOW)
    np.testing.assert_allclose(low, [-1020, -30, 1200])
    np.testing.assert_allclose(high, [-980, 30, 1500])


def test_draws_repeat_with_their_seed_and_differ_between_cases():
    class Noise:
        def draws(self, xrays, count, *, generator, scale):
            return scale * torch.randn(count, 1, 1, 2, 2, 2, generator=generator)

    def drawn(seed, case_id, scale=0.1):
        return Draws(3, {"scale": scale}, seed).of(Noise(), {}, case_id)

    torch.testing.assert_close(drawn(0, "a"), drawn(0, "a"), rtol=0, atol=0)
    assert (drawn(0, "a") != drawn(0, "b")).all()
    assert (drawn(0, "a") != drawn(1, "a")).all()
    assert drawn(0, "a").shape == (3, 2, 2, 2)
    with pytest.raises(UserError, match="NaN or infinite"):
        drawn(0, "a", float("nan"))
    with pytest.raises(UserError, match="num_samples=1: a spread needs 2 or more"):
        Draws(1, {})


def test_scalars_of_each_draw_are_its_bone_volume_and_its_vertebrae_s_heights(tmp_path):
    truth, labels = paint()
    np.save(tmp_path / "labels.npy", labels)
    drawn = [paint(HEIGHTS | {"L3": HEIGHTS["L3"] + change})[0] for change in (-3.0, 0.0, 3.0)]
    volumes = [torch.from_numpy(normalize_hu(hu, WINDOW)) for hu in (truth, *drawn)]
    case = ScoredCase("a", volumes[0][None], WINDOW, SPACING, tmp_path)
    made = CaseSpread.of(case, torch.stack(volumes[1:]), None)
    height = made.scalars["vertebra_height"]
    np.testing.assert_allclose(height.truth, list(HEIGHTS.values()), atol=0.8)
    np.testing.assert_allclose(height.mean, height.truth, atol=0.4)
    np.testing.assert_allclose(height.std, [0, 3, 0], atol=0.6)
    bone = made.scalars["bone_volume"]
    ml = [fixed_hu_bone(np.round(hu), SPACING).sum() * 8 / 1000 for hu in (truth, *drawn)]
    np.testing.assert_allclose(
        [bone.truth[0], bone.mean[0], bone.std[0]], [ml[0], np.mean(ml[1:]), np.std(ml[1:], ddof=1)]
    )
    # Floors of 0.2 mm and 1 ml.
    scores = made.scores(10.0)
    np.testing.assert_allclose(scores["vertebra_height"], np.abs(height.truth - height.mean) / (height.std + 0.2))
    np.testing.assert_allclose(scores["bone_volume"], np.abs(bone.truth - bone.mean) / (bone.std + 1))
    assert scores["voxels"].shape == (truth.size,)
    # A vertebra that two of the three draws do not show is never covered; the others are as before.
    lost = torch.stack([*volumes[1:]])
    lost[1:][:, torch.from_numpy(labels == LABELS["L3"])] = float(volumes[0].min())
    unseen = CaseSpread.of(case, lost, None).scores(10.0)["vertebra_height"]
    assert np.isposinf(unseen[list(HEIGHTS).index("L3")])
    assert len(unseen) == len(HEIGHTS)
    without = CaseSpread.of(ScoredCase("a", volumes[0][None], WINDOW, SPACING), torch.stack(volumes[1:]), None)
    assert set(without.scalars) == {"bone_volume"}
