"""Statistics of a comparison: intervals, and rows that do not differ from the reference."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from diffux2ct.comparison.notes import other_cases, otherwise_segmented
from diffux2ct.comparison.runs import Difference, ScoredRun, test_set_name, test_sets
from diffux2ct.comparison.table import NOT_DIFFERENT, Marks
from diffux2ct.evaluation.metric import Metric, plural
from diffux2ct.evaluation.statistics import (
    ALPHA,
    MIN_PATIENTS_INTERVAL,
    MIN_PATIENTS_TEST,
    bootstrap_interval,
    by_patient,
    holm,
    paired_test,
    smallest_p,
)


def statistics_marks(
    runs: Sequence[ScoredRun],
    metrics: Sequence[Metric],
    *,
    intervals: bool = False,
    test: str | None = "permutation",
    reference: str | None = None,
) -> Marks:
    """Intervals and tests of a table's scores.

    ``test``: see `paired_test`; None: no tests. ``reference``: name of the run that the others of its test set are
    tested against; None takes each set's best by PSNR3D (by the first metric where there is none), and then all pairs
    of runs count as comparisons, since the best by chance is the further from the others. All tests of the table are
    corrected together.
    """
    found, notes = _intervals(runs, metrics) if intervals else ({}, [])
    if test is None:
        return Marks(found, (), tuple(notes))
    tests, tested = _tests(test_sets(runs), metrics, reference, test)
    return Marks(found, tuple(tests), (*notes, *tested))


def _intervals(
    runs: Sequence[ScoredRun], metrics: Sequence[Metric]
) -> tuple[dict[tuple[str, str], tuple[float, float]], list[str]]:
    found, few = {}, []
    for run in runs:
        ends = {}
        for metric in metrics:
            scores = run.values(metric.key)
            if scores is not None and run.cases is not None:
                ends[metric.key] = bootstrap_interval(scores, run.cases.patients)
        found |= {(run.name, key): pair for key, pair in ends.items() if pair is not None}
        few += [run.name] if None in ends.values() or not ends else []
    notes = ["With each score the 95 % interval of its mean, from resampling patients."] if found else []
    if few:
        notes.append(f"No interval where a score has fewer than {MIN_PATIENTS_INTERVAL} patients: {', '.join(few)}.")
    return found, notes


@dataclass
class _Made:
    """Tests so far. numbers: of patients behind each. family: comparisons that could have been among them.

    against: each set's reference. untested: metrics by the reason.
    """

    tests: list[Difference] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    family: int = 0
    against: list[str] = field(default_factory=list)
    untested: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    notes: list[str] = field(default_factory=list)


def _tests(
    sets: Sequence[Sequence[ScoredRun]], metrics: Sequence[Metric], reference: str | None, test: str
) -> tuple[list[Difference], list[str]]:
    made = _Made()
    for group in sets:
        base, chosen = _reference(group, metrics, reference)
        if base is None or len(group) < 2:
            continue
        count = 0 if base.cases is None else len(set(base.cases.patients))
        if count < MIN_PATIENTS_TEST:
            made.notes.append(_too_few(base, count))
            continue
        fair = [metric for metric in metrics if not otherwise_segmented(group, metric.key)]
        _test_set(made, group, base, fair, test)
        # With a reference that its score chose, any two runs could have been the ones to compare.
        pairs = combinations(group, 2) if chosen else ((run, base) for run in group if run is not base)
        made.family += sum(not _untestable(a, b, m.key) for a, b in pairs for m in fair)
    corrected = holm([each.p_raw for each in made.tests], made.family)
    tests = [replace(each, p=p) for each, p in zip(made.tests, corrected, strict=True)]
    notes = [*made.notes, *(_test_notes(made, tests, test) if tests else ())]
    notes += [f"Not tested: {', '.join(keys)}; {reason}." for reason, keys in made.untested.items()]
    return tests, notes


def _test_set(made: _Made, group: Sequence[ScoredRun], base: ScoredRun, metrics: Sequence[Metric], test: str) -> None:
    """Tests each run of a group against ``base``."""
    made.against.append(base.name)
    for run, metric in ((r, m) for r in group if r is not base for m in metrics):
        reason = _untestable(run, base, metric.key)
        if reason:
            made.untested[reason][metric.key] = None
            continue
        a, b, patients = _paired(run, base, metric.key)
        result = paired_test(a, b, patients, test=test)
        assert result.p is not None
        interval = bootstrap_interval(a - b, patients)
        same, p = np.array_equal(np.isfinite(a), np.isfinite(b)), result.p
        made.tests.append(Difference(run.name, base.name, metric.key, result.difference, interval, p, p, same))
        made.numbers.append(result.num_patients)


def _test_notes(made: _Made, tests: Sequence[Difference], test: str) -> list[str]:
    kind = "sign-flip permutation" if test == "permutation" else "Wilcoxon signed-rank"
    against, counted = ", ".join(made.against), plural(made.family, "comparison")
    every = ", each of two runs, because its score chose the reference; --reference before looking needs fewer"
    every = every if made.family > len(tests) else ""
    notes = [
        f"Tested against {against}, over patients: {kind} test, Holm's correction for {counted}{every}, at {ALPHA:g}."
    ]
    if any(not each.significant for each in tests):
        notes.append(f"{NOT_DIFFERENT}: not significantly different from {against}.")
    return notes + _hopeless(made, tests)


def _hopeless(made: _Made, tests: Sequence[Difference]) -> list[str]:
    """A note on tests that cannot be significant, whatever the scores: p falls no lower than the patients allow."""
    # Holm's p grows with each p of the family, so that of the smallest possible ones is the least there can be.
    least = holm([smallest_p(number) for number in made.numbers], made.family)
    hopeless = [(each, number) for each, number, p in zip(tests, made.numbers, least, strict=True) if p >= ALPHA]
    found = []
    for key in dict.fromkeys(each.metric for each, _ in hopeless):
        runs = [each.run for each, _ in hopeless if each.metric == key]
        counts = sorted({number for each, number in hopeless if each.metric == key})
        whose = "" if len(runs) == sum(each.metric == key for each in tests) else f" of {', '.join(runs)}"
        found.append(f"{key}{whose} ({' or '.join(map(str, counts))} patients)")
    note = f"Among so many comparisons no difference can be significant in {'; '.join(found)}"
    return [f"{note}; name fewer --metrics or runs."] if found else []


def _too_few(base: ScoredRun, count: int) -> str:
    if base.cases is None:
        return f"Not tested ({test_set_name(base)}): {base.name} has no per_case.csv."
    return (
        f"Not tested: {plural(count, 'patient')} ({test_set_name(base)}) are too few, p cannot fall below "
        f"{smallest_p(count):.2g}; {MIN_PATIENTS_TEST} are needed."
    )


def _reference(
    group: Sequence[ScoredRun], metrics: Sequence[Metric], wanted: str | None
) -> tuple[ScoredRun | None, bool]:
    """The run that the others are tested against, and True if its score chose it."""
    if wanted is not None:
        return next((run for run in group if run.name == wanted), None), False
    # Means over different cases rank no runs.
    fair = [metric for metric in metrics if not other_cases(group, metric.key)]
    by = next((metric for metric in fair if metric.key == "psnr3d"), fair[0] if fair else None)
    if by is None:
        return group[0], False
    scored = [(score, run) for run in group if (score := run.score(by.key)) is not None]
    if not scored or not by.sign:
        return group[0], False
    return (max if by.sign > 0 else min)(scored, key=lambda pair: pair[0])[1], True


def _untestable(run: ScoredRun, base: ScoredRun, key: str) -> str:
    """The reason why two runs cannot be tested in a metric; "" where they can."""
    if run.cases is None or base.cases is None:
        return "a run has no per_case.csv"
    has = [one.values(key) is not None for one in (run, base)]
    if not any(has) and None not in (run.score(key), base.score(key)):
        return "one number for all cases together, with no value by case to test"
    if not all(has):
        return "not every run has it"
    a, b, patients = _paired(run, base, key)
    if len(by_patient(a - b, patients)[0]) < MIN_PATIENTS_TEST:
        return f"fewer than {MIN_PATIENTS_TEST} patients have a value in both runs"
    return ""


def _paired(run: ScoredRun, base: ScoredRun, key: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Both runs' values of the same cases, and the cases' patients."""
    assert run.cases is not None
    assert base.cases is not None
    return run.cases.scores[key], base.cases.in_order(run.cases.cases).scores[key], run.cases.patients
