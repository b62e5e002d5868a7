"""Intervals, paired tests and Holm's correction, against scipy, simulations and numbers worked by hand."""

import numpy as np
import pytest
from scipy import stats

from diffux2ct.errors import UserError
from diffux2ct.evaluation.statistics import (
    MIN_PATIENTS_INTERVAL,
    MIN_PATIENTS_TEST,
    bootstrap_interval,
    by_patient,
    holm,
    paired_test,
    smallest_p,
)


def each(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_sums_by_patient_leave_missing_scores_out():
    scores = np.array([1.0, np.nan, 3.0, np.nan, 5.0])
    names, sums, counts = by_patient(scores, ["a", "a", "b", "c", "b"])
    assert names == ["a", "b"]
    np.testing.assert_array_equal(sums, [1.0, 8.0])
    np.testing.assert_array_equal(counts, [1.0, 2.0])


def test_the_interval_agrees_with_scipys_percentiles_at_the_expanded_level():
    scores = np.random.default_rng(1).gamma(2.0, 1.5, size=30)
    tail = stats.norm.cdf(np.sqrt(30 / 29) * stats.t.ppf(0.025, 29))
    expected = stats.bootstrap(
        (scores,), np.mean, confidence_level=1 - 2 * tail, method="percentile", n_resamples=20_000, rng=5
    ).confidence_interval
    # Ends of 10 000 resamples scatter by about 0.01 standard errors of the mean here (0.4).
    assert bootstrap_interval(scores, each(30)) == pytest.approx((expected.low, expected.high), abs=0.03)


def covered(num_sims: int, num_patients: int, by_case: bool = False) -> float:
    """How often an interval holds the true mean 0, where cases of a patient resemble each other."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(num_sims):
        sizes = rng.integers(1, 6, num_patients)
        patient = np.repeat(np.arange(num_patients), sizes)
        scores = rng.normal(size=num_patients)[patient] + 0.3 * rng.normal(size=len(patient))
        names = each(len(patient)) if by_case else [f"p{i}" for i in patient]
        low, high = bootstrap_interval(scores, names, num_resamples=400)
        hits += low <= 0 <= high
    return hits / num_sims


def test_coverage_is_nominal_over_patients_and_not_over_cases():
    # 400 simulations: a standard error of 0.011.
    assert covered(400, 20) == pytest.approx(0.95, abs=0.03)
    assert covered(100, 20, by_case=True) < 0.80


def test_repeated_cases_of_a_patient_say_nothing_new():
    scores = np.random.default_rng(2).normal(size=12)
    once = bootstrap_interval(scores, each(12))
    assert bootstrap_interval(np.tile(scores, 4), each(12) * 4) == pytest.approx(once, abs=1e-12)
    assert bootstrap_interval(scores, each(12), seed=1) != once
    # A patient with more cases weighs more, as in the mean over cases: here it cannot move what is the same for all.
    unequal = [name for i, name in enumerate(each(12)) for _ in range(i + 1)]
    assert bootstrap_interval(np.full(len(unequal), 5.0), unequal) == pytest.approx((5.0, 5.0), abs=1e-12)


def test_too_few_patients_give_neither_interval_nor_p():
    scores = np.arange(40.0)
    few = MIN_PATIENTS_INTERVAL - 1
    assert bootstrap_interval(scores, each(few) * (40 // few)) is None
    assert bootstrap_interval(scores, each(few + 1) * 8) is not None
    few = MIN_PATIENTS_TEST - 1
    result = paired_test(scores, scores + 1, each(few) * 8)
    assert (result.p, result.num_patients, result.difference) == (None, few, -1.0)
    # What makes that the limit: all six of one sign, exactly 2 of 2^6 sign patterns.
    assert paired_test(np.arange(1.0, 7.0), np.zeros(6), each(6)).p == pytest.approx(2 / 64)
    assert 2 / 2**MIN_PATIENTS_TEST < 0.05 < 2 / 2 ** (MIN_PATIENTS_TEST - 1)


@pytest.mark.parametrize("n", [10, 25])
def test_the_permutation_test_agrees_with_scipy(n):
    rng = np.random.default_rng(3)
    a = rng.normal(size=n)
    b = a + 0.4 + rng.normal(scale=0.9, size=n)
    expected = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**n if n == 10 else 20_000,
        rng=4,
    ).pvalue
    result = paired_test(a, b, each(n))
    assert 0.01 < expected < 0.5
    assert result.p == pytest.approx(expected, abs=1e-12 if n == 10 else 0.006)
    assert result.difference == pytest.approx(np.mean(a - b))


def test_the_wilcoxon_test_by_hand_and_where_it_departs_from_the_mean():
    # Ranks 1..8, the smallest negative: W = 1. Of 2^8 sign patterns 2 have W <= 1 on one side: p = 4 / 256.
    differences = np.array([-1.0, 2, 3, 4, 5, 6, 7, 8])
    assert paired_test(differences, np.zeros(8), each(8), test="wilcoxon").p == pytest.approx(4 / 256)
    # One patient outweighs eleven in the mean, and not in the ranks.
    skewed = np.array([0.1 + 0.01 * i for i in range(11)] + [-8.0])
    ranks, mean = (paired_test(skewed, np.zeros(12), each(12), test=t) for t in ("wilcoxon", "permutation"))
    assert ranks.p < 0.05 < mean.p
    assert mean.difference < 0
    with pytest.raises(UserError, match=r"--test=t: no such choice; choose from permutation, wilcoxon"):
        paired_test(skewed, skewed, each(12), test="t")


def test_false_findings_are_as_rare_as_promised():
    rng = np.random.default_rng(11)
    for test in ("permutation", "wilcoxon"):
        p = [paired_test(rng.normal(size=8), rng.normal(size=8), each(8), test=test).p for _ in range(400)]
        # 400 draws: a standard error of 0.011.
        assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.033)


def test_equal_methods_and_missing_cases():
    scores = np.arange(8.0)
    assert paired_test(scores, scores, each(8)).p == 1.0
    assert paired_test(scores, scores, each(8), test="wilcoxon").p == 1.0
    gone = scores + 1
    gone[:3] = np.nan
    assert paired_test(gone, scores, each(8)) == paired_test(gone[3:], scores[3:], each(8)[3:])


def test_many_patients_never_give_a_p_of_zero_and_the_seed_decides():
    a = np.random.default_rng(0).normal(5.0, 1.0, size=40)
    assert paired_test(a, np.zeros(40), each(40)).p == pytest.approx(1 / 100_001)
    assert smallest_p(40) == pytest.approx(1 / 100_001)
    assert (smallest_p(2), smallest_p(10)) == (0.5, 2 / 2**10)
    b = a - 5.0
    first, again, other = (paired_test(b, np.zeros(40), each(40), seed=s).p for s in (0, 0, 1))
    assert first == again != other


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    # The smallest two of a family of four: times 4 and 3.
    assert holm([0.01, 0.005], family=4) == pytest.approx([0.03, 0.02])
    with pytest.raises(ValueError, match="a family of 1 holds no 2 comparisons"):
        holm([0.1, 0.2], family=1)


def test_some_of_a_family_get_no_smaller_p_than_from_the_whole_of_it():
    for p in np.random.default_rng(6).uniform(size=(200, 10)) ** 3:
        whole, few = holm(p.tolist()), holm(p[:4].tolist(), family=10)
        assert all(a >= b - 1e-12 for a, b in zip(few, whole, strict=False))


def test_holm_holds_the_chance_of_any_false_finding():
    p = np.random.default_rng(5).uniform(size=(1500, 8))
    assert np.mean([min(holm(row)) < 0.05 for row in p.tolist()]) == pytest.approx(0.05, abs=0.015)
    assert np.mean(p.min(1) < 0.05) > 0.3


def test_the_difference_is_the_table_s_where_patients_have_unequal_numbers_of_cases():
    """One patient of 30 cases against many of one: table, difference and test speak of the same mean."""
    patients = ["many"] * 30 + [f"p{k}" for k in range(23)]
    a = np.array([1.0] * 30 + [-0.45] * 23)
    result = paired_test(a, np.zeros(53), patients)
    assert result.difference == pytest.approx(a.mean())
    assert result.difference > 0.3
    assert result.p > 0.1  # it hangs on one patient
    low, high = bootstrap_interval(a, patients)
    assert low < result.difference < high
