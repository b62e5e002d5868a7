import json
from math import comb

import numpy as np
import pytest
from scipy.stats import norm

from diffux2ct.errors import UserError
from diffux2ct.evaluation.uncertainty.calibration import (
    SCALES,
    Calibration,
    Rule,
    hashed,
    hoeffding_bentkus,
    loss_curve,
)


def curves(scores) -> np.ndarray:
    return np.stack([loss_curve(np.asarray(own, float)) for own in scores])


def made(**changes) -> Calibration:
    values = {
        "rule": Rule(), "scales": {"voxels": 2.0}, "num_patients": {"voxels": 9}, "num_samples": 8,
        "sampling": {"output": "ensemble", "num_inference_steps": 5}, "model": {"step": 4, "sha256": "a"},
        "dataset": "lumbarv", "data": "m", "split": "val", "patients": [hashed("p1"), hashed("p2")],
        "contents": ["c1", "c2"], "seed": 0,
        "precision": "fp32",
    }  # fmt: skip
    return Calibration(**(values | changes))


def test_the_scale_by_hand():
    """Three patients, alpha .5: (3 R + 1) / 4 <= .5 where R <= 1/3, so where their losses sum to 1 or less."""
    scores = [[0.5, 1.0, 1.5, 2.0], [0.1, 0.2, 3.0, 4.0], [0.3, 0.3, 0.3, 5.0]]
    # Losses between 1.5 and 2: 1/4 + 1/2 + 1/4 = 1; below 1.5: 2/4 + 1/2 + 1/4 > 1.
    scale = Rule(alpha=0.5).smallest_scale(curves(scores))
    assert 1.5 <= scale <= 1.5 * 1.003
    place = np.flatnonzero(scale == SCALES)[0]
    assert curves(scores).mean(0)[place - 1] > 1 / 3


def test_each_rule_needs_the_patients_that_its_bound_needs():
    assert Rule("crc").least_patients == 9
    assert Rule("crc", alpha=0.05).least_patients == 19
    assert Rule("rcps").least_patients == 22
    assert Rule("rcps", alpha=0.05, delta=0.1).least_patients == 45  # 0.95^45 < .1 < 0.95^44
    for rule, least, why in ((Rule("crc"), 9, "alpha=0.1"), (Rule("rcps"), 22, "alpha=0.1, delta=0.1")):
        rule.check_patients(least)
        with pytest.raises(UserError, match=f"{least - 1} patients; {rule.method} at {why} needs {least}"):
            rule.check_patients(least - 1)
        exact = np.full((least, 5), 1e-6)
        assert rule.smallest_scale(curves(exact)) == SCALES[0]
        assert rule.smallest_scale(curves(exact[1:])) is None


def test_too_few_patients_get_the_smallest_alpha_that_they_serve():
    with pytest.raises(UserError, match=r"8 patients; .* or give interval.alpha=0.12 or more$"):  # 1 / 9 = .111
        Rule("crc").check_patients(8)
    Rule("crc", alpha=0.12).check_patients(8)
    with pytest.raises(
        UserError, match=r"21 patients; .* or give interval.alpha=0.11 or more$"
    ):  # 1 - .1^(1/21) = .104
        Rule("rcps").check_patients(21)
    Rule("rcps", alpha=0.11).check_patients(21)
    with pytest.raises(UserError, match=r"1 patient; .*use interval.method=crc$"):
        Rule("rcps", delta=0.001).check_patients(1)


def test_hoeffding_bentkus_is_the_chance_of_a_binomial_and_never_more_than_hoeffding():
    np.testing.assert_allclose(hoeffding_bentkus(np.zeros(1), 22, 0.1), 0.9**22)
    assert hoeffding_bentkus(np.array([0.1]), 50, 0.1) == 1
    # Between 2 and 3 of 50 patients the binomial counts 3; here it is the smaller of the two bounds.
    kl = 0.05 * np.log(0.5) + 0.95 * np.log(0.95 / 0.9)
    binomial = sum(comb(50, k) * 0.1**k * 0.9 ** (50 - k) for k in range(4))
    expected = min(np.exp(-50 * kl), np.e * binomial)
    np.testing.assert_allclose(hoeffding_bentkus(np.array([0.05]), 50, 0.1), expected)
    risks = np.linspace(0, 0.1, 11)
    values = hoeffding_bentkus(risks, 50, 0.1)
    assert (np.diff(values) >= 0).all()
    assert (values <= np.exp(-2 * 50 * (0.1 - risks) ** 2) + 1e-12).all()


def test_conformal_risk_control_covers_new_patients_on_average():
    """Patients' errors are normal, each with a scale of its own that the standard deviation does not show."""
    rng, num = np.random.default_rng(0), 30
    population = np.exp(0.5 * norm.ppf((np.arange(400) + 0.5) / 400))
    risks = []
    for _ in range(100):
        losses = 2 * norm.sf(SCALES / rng.lognormal(0, 0.5, (num, 1)))  # of very many voxels
        risks.append(np.mean(2 * norm.sf(Rule().smallest_scale(losses) / population)))
    # Between alpha - 2 / (n + 1) and alpha, here with four standard errors.
    assert 0.1 - 2 / (num + 1) < np.mean(risks) < 0.1 + 4 * np.std(risks) / 10
    assert np.mean(risks) > 0.06


def test_rcps_exceeds_its_risk_in_as_many_calibrations_as_it_may():
    """Losses of 0 or 1 with 22 patients, where the bound is tight: the risk is above .1 with a chance of .9^22."""
    rng, num, trials = np.random.default_rng(0), 22, 200
    scales = [Rule("rcps").smallest_scale(curves(np.abs(rng.normal(size=(num, 1))))) for _ in range(trials)]
    exceeded = np.mean(2 * norm.sf(scales) > 0.1)
    assert abs(exceeded - 0.9**num) < 4 * (0.1 * 0.9 / trials) ** 0.5
    # Conformal risk control with as many patients promises an average only.
    scales = [Rule("crc").smallest_scale(curves(np.abs(rng.normal(size=(num, 1))))) for _ in range(trials)]
    risks = 2 * norm.sf(scales)
    assert 0.1 - 1 / (num + 1) < risks.mean() < 0.1 + 4 * risks.std() / trials**0.5
    assert np.mean(risks > 0.1) > 0.25


def test_a_calibration_survives_its_file(tmp_path):
    path = tmp_path / "calibration.json"
    assert Calibration.load(path) is None
    made().save(path)
    assert Calibration.load(path) == made()
    for spoil in (lambda v: v | {"scales": {"voxels": -1}}, lambda v: v | {"format": 1}, lambda v: [v]):
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
        with pytest.raises(UserError, match=r"not a calibration .*; calibrate again"):
            Calibration.load(path)
        made().save(path)


def test_other_draws_and_calibrated_patients_are_refused():
    own = made()
    assert own.misfit(8, own.sampling, own.model, "fp32") is None
    assert "calibrated with num_samples=8;" in own.misfit(4, own.sampling, own.model, "fp32")
    assert "num_inference_steps=5" in own.misfit(8, own.sampling | {"num_inference_steps": 2}, own.model, "fp32")
    assert "other weights (step 4)" in own.misfit(8, own.sampling, own.model | {"sha256": "b"}, "fp32")
    assert "calibrated with precision=fp32;" in own.misfit(8, own.sampling, own.model, "bf16")
    own.check_others(["p3"], ["c3"], own.data, own.dataset)
    own.check_others(["p1"], ["c3"], "other", "other")  # numbers are given anew in every set
    for contents, place in (
        (["c3", "c4"], ("m", "other")),
        (["c3", "c4"], ("n", "lumbarv")),
        (["c3", "c2"], ("n", "o")),
    ):
        with pytest.raises(UserError, match=r"1 of the patients to score were calibrated on \(p2"):
            own.check_others(["p3", "p2"], contents, *place)
