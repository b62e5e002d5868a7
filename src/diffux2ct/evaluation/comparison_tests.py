"""Statistics of a comparison: intervals, and which rows cannot be told from the reference."""

from collections.abc import Sequence
from dataclasses import replace

from diffux2ct.evaluation.comparison import (
    Difference,
    MetricAbout,
    ScoredRun,
    plural,
    test_set_name,
    test_sets,
)
from diffux2ct.evaluation.comparison_columns import otherwise_segmented
from diffux2ct.evaluation.comparison_table import NOT_DIFFERENT, Marks
from diffux2ct.evaluation.statistics import (
    ALPHA,
    MIN_PATIENTS_INTERVAL,
    MIN_PATIENTS_TEST,
    bootstrap_interval,
    holm,
    paired_test,
    smallest_p,
)


def statistics_marks(
    runs: Sequence[ScoredRun],
    metrics: Sequence[MetricAbout],
    *,
    intervals: bool = False,
    test: str | None = "permutation",
    reference: str | None = None,
) -> Marks:
    """What the statistics say of a table's scores.

    ``test``: see `paired_test`; None makes none. ``reference``: name of the run that the others of its test set are
    tested against; None takes each set's best by PSNR3D (by the first metric where there is none). All tests of the
    table are corrected together.
    """
    found, notes = _intervals(runs, metrics) if intervals else ({}, [])
    if test is None:
        return Marks(found, (), tuple(notes))
    tests, tested = _tests(test_sets(runs), metrics, reference, test)
    return Marks(found, tuple(tests), (*notes, *tested))


def _intervals(
    runs: Sequence[ScoredRun], metrics: Sequence[MetricAbout]
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
        notes.append(
            f"No interval where a score has fewer than {MIN_PATIENTS_INTERVAL} patients: {', '.join(few)}."
        )
    return found, notes


def _tests(
    sets: Sequence[Sequence[ScoredRun]], metrics: Sequence[MetricAbout], reference: str | None, test: str
) -> tuple[list[Difference], list[str]]:
    made: list[Difference] = []
    notes, against = [], []
    patients: list[int] = []
    untested: dict[str, None] = {}
    for group in sets:
        base = _reference(group, metrics, reference)
        if base is None or len(group) < 2:
            continue
        count = 0 if base.cases is None else len(set(base.cases.patients))
        if count < MIN_PATIENTS_TEST:
            notes.append(_too_few(group[0], count))
            continue
        against.append(base.name)
        fair = [metric for metric in metrics if not otherwise_segmented(group, metric.key)]
        for run, metric in ((r, m) for r in group if r is not base for m in fair):
            difference, number = _test(run, base, metric, test)
            if difference is None:
                untested[metric.key] = None
            else:
                made.append(difference)
                patients.append(number)
    corrected = holm([each.p for each in made])
    made = [replace(each, p=p) for each, p in zip(made, corrected, strict=True)]
    if made:
        kind = "sign-flip permutation" if test == "permutation" else "Wilcoxon signed-rank"
        notes.append(
            f"Tested against {', '.join(against)}, over patients: {kind} test, Holm's correction for "
            f"{plural(len(made), 'comparison')}, at {ALPHA:g}."
        )
        if any(not each.significant for each in made):
            notes.append(f"{NOT_DIFFERENT}: not significantly different from {', '.join(against)}.")
        if smallest_p(min(patients)) * len(made) >= ALPHA:
            notes.append(
                "Among so many comparisons no difference can be significant; name fewer --metrics or runs."
            )
    if untested:
        notes.append(
            f"Not tested: {', '.join(untested)}; fewer than {MIN_PATIENTS_TEST} patients have a value in both runs."
        )
    return made, notes


def _too_few(run: ScoredRun, count: int) -> str:
    if run.cases is None:
        return f"Not tested ({test_set_name(run)}): there is no per_case.csv."
    return (
        f"Not tested: {plural(count, 'patient')} ({test_set_name(run)}) are too few, p cannot fall below "
        f"{smallest_p(count):.2g}; {MIN_PATIENTS_TEST} are needed."
    )


def _reference(
    group: Sequence[ScoredRun], metrics: Sequence[MetricAbout], wanted: str | None
) -> ScoredRun | None:
    if wanted is not None:
        return next((run for run in group if run.name == wanted), None)
    by = next((m for m in metrics if m.key == "psnr3d"), metrics[0])
    scored = [(score, run) for run in group if (score := run.score(by.key)) is not None]
    if not scored:
        return group[0]
    return (max if by.larger_is_better else min)(scored, key=lambda pair: pair[0])[1]


def _test(run: ScoredRun, base: ScoredRun, metric: MetricAbout, test: str) -> tuple[Difference | None, int]:
    """The difference, None where it cannot be tested, and the number of patients behind it."""
    if run.cases is None or base.cases is None:
        return None, 0
    a, b = run.values(metric.key), base.cases.in_order(run.cases.cases).scores.get(metric.key)
    if a is None or b is None:
        return None, 0
    result = paired_test(a, b, run.cases.patients, test=test)
    if result.p is None:
        return None, result.num_patients
    interval = bootstrap_interval(a - b, run.cases.patients)
    difference = Difference(run.name, base.name, metric.key, result.difference, interval, result.p, result.p)
    return difference, result.num_patients
