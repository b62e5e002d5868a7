"""What the tests say of a table, on made-up scores: what is significant, and what cannot be tested."""

from dataclasses import replace

import numpy as np
import pytest
from tests.comparison.scored_runs import scored, with_distances

from diffux2ct.comparison.runs import choose_metrics
from diffux2ct.comparison.significance import statistics_marks
from diffux2ct.evaluation.metric import metric_of


def test_only_differences_beyond_chance_are_left_unmarked():
    rng = np.random.default_rng(0)
    base = np.repeat(rng.normal(20, 1, 10), 2)
    noise = np.repeat(rng.normal(0, 0.5, 10), 2)
    noise -= noise.mean()
    runs = [scored("best", base + 1), scored("alike", base + 0.9 + noise), scored("worse", base - 2 + noise)]
    metrics = choose_metrics(runs, None)
    marks = statistics_marks(runs, metrics, intervals=True)
    verdict = {test.run: test.significant for test in marks.tests}
    assert verdict == {"alike": False, "worse": True}
    worse = next(test for test in marks.tests if test.run == "worse")
    assert worse.reference == "best"
    assert worse.difference == pytest.approx(-3.0)
    assert worse.interval[0] < worse.difference < worse.interval[1] < 0
    assert worse.p_raw == pytest.approx(2 / 2**10)
    assert worse.p == pytest.approx(3 * worse.p_raw)  # the smaller of two, of three pairs of runs
    low, high = marks.intervals["best", "psnr3d"]
    assert low < base.mean() + 1 < high
    assert any("Holm's correction for 3 comparisons, each of two runs" in note for note in marks.notes)
    fixed = statistics_marks(runs, metrics, reference="best")
    assert next(t for t in fixed.tests if t.run == "worse").p == pytest.approx(2 * worse.p_raw)
    assert any("Holm's correction for 2 comparisons, at 0.05." in note for note in fixed.notes)
    assert any(note == "≈: not significantly different from best." for note in marks.notes)
    assert {t.reference for t in statistics_marks(runs, metrics, reference="worse").tests} == {"worse"}
    assert statistics_marks(runs, metrics, test=None).tests == ()


def test_too_few_patients_are_said_instead_of_a_p():
    runs = [scored("a", np.arange(8.0)), scored("b", np.arange(8.0) + 1)]
    marks = statistics_marks(runs, choose_metrics(runs, None), intervals=True)
    assert (marks.tests, marks.intervals) == ((), {})
    assert any("4 patients" in note and "cannot fall below 0.12; 6 are needed" in note for note in marks.notes)
    assert any("No interval where a score has fewer than 5 patients: a, b." in note for note in marks.notes)


def test_which_metrics_have_too_many_comparisons_for_their_patients_is_said():
    values = np.repeat(np.arange(6.0), 2)
    runs = [scored(name, values + k) for k, name in enumerate("abc")]
    marks = statistics_marks(runs, choose_metrics(runs, None))
    assert [test.significant for test in marks.tests] == [False, False]  # 3 x 2/64 > 0.05
    assert any("no difference can be significant in psnr3d (6 patients);" in note for note in marks.notes)
    # Of ten patients all have a PSNR3D, and six a distance: only of the latter is it true.
    few = np.where(np.arange(20) < 12, np.linspace(9, 11, 20), np.nan)
    runs = [with_distances(scored(name, np.linspace(18, 22, 20) + k), few + k) for k, name in enumerate("abc")]
    marks = statistics_marks(runs, choose_metrics(runs, ["psnr3d", "hd95_bone"]), reference="a")
    assert {t.metric: t.significant for t in marks.tests} == {"psnr3d": True, "hd95_bone": False}
    (note,) = [note for note in marks.notes if note.startswith("Among so many")]
    assert "no difference can be significant in hd95_bone (6 patients); name fewer" in note


def test_what_has_no_value_by_case_is_not_said_to_lack_patients():
    runs = [scored("a", fd_ct=3.0), scored("b", fd_ct=4.0)]
    notes = statistics_marks(runs, choose_metrics(runs, ["psnr3d", "fd_ct"])).notes
    assert "Not tested: fd_ct; one number for all cases together, with no value by case to test." in notes
    few = np.where(np.arange(20) < 10, 9.0, np.nan)
    runs = [with_distances(scored("a"), few), with_distances(scored("b"), few), scored("c")]
    notes = statistics_marks(runs, choose_metrics(runs, ["psnr3d", "hd95_bone"]), reference="a").notes
    assert "Not tested: hd95_bone; fewer than 6 patients have a value in both runs." in notes
    assert "Not tested: hd95_bone; not every run has it." in notes
    old = replace(scored("old", np.full(20, 99.0)), cases=None)
    notes = statistics_marks([runs[0], old], choose_metrics(runs, ["psnr3d"])).notes
    assert any(note.endswith("old has no per_case.csv.") for note in notes)


@pytest.mark.parametrize("reference", [None, "m0"])
def test_false_findings_are_as_rare_as_promised_whoever_chose_the_reference(reference):
    """Six equal methods, thirteen patients: in how many tables anything differs significantly from the reference."""
    rng, tables = np.random.default_rng(3), 200
    found = 0
    for _ in range(tables):
        values = rng.normal(20, 0.9, 13) + rng.normal(0, 0.45, (6, 13))
        runs = [scored(f"m{k}", row) for k, row in enumerate(values)]
        apart = [replace(r, cases=replace(r.cases, patients=r.cases.cases)) for r in runs]
        tests = statistics_marks(apart, [metric_of("psnr3d")], reference=reference).tests
        found += any(test.significant for test in tests)
    # A standard error of 0.015; with only the tests shown counted, a chosen reference comes to 0.13.
    assert found / tables == pytest.approx(0.045, abs=0.03)


def test_a_difference_is_over_the_cases_that_both_have():
    """So it may even have the other sign than the difference of the two means."""
    hard = np.where(np.arange(20) < 14, 10.0, 30.0)
    easy = np.where(np.arange(20) < 14, 11.0, np.nan)
    runs = [with_distances(scored("all"), hard), with_distances(scored("few"), easy)]
    (test,) = statistics_marks(runs, choose_metrics(runs, ["hd95_bone"]), reference="all").tests
    assert runs[1].score("hd95_bone") < runs[0].score("hd95_bone")
    assert test.difference == pytest.approx(1.0)
