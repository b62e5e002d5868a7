"""Runs x metrics as a table of cells with their marks; `formats` writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from diffux2ct.comparison.notes import SUPERSCRIPTS, column_notes, other_cases, otherwise_segmented, table_notes
from diffux2ct.comparison.runs import Difference, ScoredRun, test_sets
from diffux2ct.evaluation.metric import Metric

BELOW_FLOOR, NOT_DIFFERENT = "†", "≈"

COSTS = ("steps", "volumes", "seeds", "parameters", "tflop", "seconds")


@dataclass(frozen=True)
class Cell:
    """A value and its text, "–" without one. ``spread`` is a standard deviation, ``interval`` the ends of a 95 %
    interval, ``p`` that of the test against the reference, corrected; ``scored`` is "3 of 8" where a mean is over fewer
    cases than there are, else empty."""

    text: str = "–"
    value: float | int | str | None = None
    best: bool = False
    marks: tuple[str, ...] = ()
    spread: str = ""
    interval: str = ""
    p: float | None = None
    scored: str = ""

    @property
    def number(self) -> str:
        """The value, with its standard deviation where there is one."""
        return f"{self.text} ± {self.spread}" if self.spread else self.text


@dataclass(frozen=True)
class Column:
    """``key`` names it in CSV and to --sort; ``about`` is one line on it.

    better: 1 where larger is better, -1 where smaller, 0 neither.
    """

    key: str
    title: str
    unit: str = ""
    better: Literal[-1, 0, 1] = 0
    about: str = ""


@dataclass(frozen=True)
class Row:
    """A run, or the floor of a test set."""

    cells: tuple[Cell, ...]
    is_floor: bool = False
    test_set: int = 0


@dataclass(frozen=True)
class Table:
    """A table: rows in order, each test set's followed by its floor, and notes in sentences."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    title: str = "Comparison"
    tests: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Marks:
    """Statistics for a table: intervals by (run's name, metric's key), tests, and sentences on both."""

    intervals: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    tests: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()


NO_MARKS = Marks()


def build_table(
    runs: Sequence[ScoredRun],
    metrics: Sequence[Metric],
    *,
    sort: str | None = None,
    marks: Marks = NO_MARKS,
    title: str = "Comparison",
    problems: Sequence[str] = (),
) -> Table:
    """The table of ``runs``; names must differ. ``problems`` are sentences to put under it as they are.

    The best score of each test set is bold, but where only one run was scored on it, or where the means are over
    different cases or of different networks' segmentations. A score no better than its floor is marked, and so is one
    that does not differ from the reference by the statistics in ``marks``.
    """
    sets = test_sets(runs)
    machines = list(dict.fromkeys(run.machine for run in runs if run.machine))
    has_methods = any(run.method for run in runs)
    columns = [
        Column("run", "Run"),
        *([Column("method", "Method")] if has_methods else []),
        *([Column("test_set", "Set")] if len(sets) > 1 else []),
        Column("steps", "Steps"),
        Column("volumes", "Volumes seen"),
        Column("seeds", "Seed"),
        Column("parameters", "Parameters", "M"),
        Column("tflop", "TFLOP per volume"),
        Column("seconds", "Time per volume", "s"),
        *(Column(m.key, m.title, m.unit, m.sign, m.about) for m in metrics),
    ]
    rows = []
    for number, group in enumerate(sets):
        letter = [Cell(chr(ord("A") + number), chr(ord("A") + number))] if len(sets) > 1 else []
        for run in sorted(group, key=_order(sort, metrics)) if sort else group:
            method = [Cell(run.method or "–", run.method)] if has_methods else []
            cells = [Cell(run.name, run.name), *method, *letter, *_costs(run, machines)]
            cells += [_score(run, metric, group, marks) for metric in metrics]
            rows.append(Row(tuple(cells), test_set=number))
        no_method = [Cell()] if has_methods else []
        rows.append(_floor(group, metrics, [*no_method, *letter], number))
    notes = (*_legend(rows), *column_notes(sets, metrics), *table_notes(runs, sets, machines), *marks.notes, *problems)
    return Table(tuple(columns), tuple(rows), notes, title, marks.tests)


def sort_keys(metrics: Sequence[Metric]) -> list[str]:
    """Keys that sort a table."""
    return ["run", "method", *COSTS, *(metric.key for metric in metrics)]


def _order(sort: str, metrics: Sequence[Metric]) -> Callable[[ScoredRun], tuple]:
    """Best first for a metric, smallest first for the rest; unknown values last."""
    metric = next((m for m in metrics if m.key == sort), None)

    def key(run: ScoredRun) -> tuple:
        if sort in ("run", "method"):
            name = run.name if sort == "run" else run.method
            return (name is None, name or "")
        if sort == "seeds":
            return (not run.seeds, run.seeds)
        value = _number(run, sort) if metric is None else run.score(sort)
        if value is None:
            return (True, 0.0)
        return (False, -value if metric is not None and metric.sign > 0 else value)

    return key


def _number(run: ScoredRun, key: str) -> float | int | None:
    if key in ("parameters", "tflop"):
        return None if run.cost is None else float(getattr(run.cost, key))
    return {"steps": run.steps, "volumes": run.volumes_seen, "seconds": run.score("seconds_per_volume")}[key]


def _costs(run: ScoredRun, machines: Sequence[str]) -> list[Cell]:
    def cell(key: str, shown: Callable[[float | int], str], marks: tuple[str, ...] = ()) -> Cell:
        value = _number(run, key)
        return Cell() if value is None else Cell(shown(value), value, marks=marks)

    seeds = ", ".join(str(seed) for seed in run.seeds)
    several = len(machines) > 1 and run.machine is not None
    place = (SUPERSCRIPTS[min(machines.index(run.machine or ""), 8)],) if several else ()
    return [
        cell("steps", lambda v: f"{v:.0f}"),
        cell("volumes", lambda v: f"{v:.0f}"),
        Cell(seeds or "–", seeds or None),
        cell("parameters", lambda v: f"{v / 1e6:.2f}" if v >= 1e4 else f"{v / 1e6:.2g}"),
        cell("tflop", _three),
        cell("seconds", _three, place),
    ]


def _three(value: float | int) -> str:
    """Three significant digits without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2e}" if 0 < value < 1e-4 else f"{value:#.3g}"


def _score(run: ScoredRun, metric: Metric, group: Sequence[ScoredRun], marks: Marks) -> Cell:
    value = run.score(metric.key)
    if value is None:
        return Cell()
    others = [score for r in group if (score := r.score(metric.key)) is not None]
    fair = not other_cases(group, metric.key) and not otherwise_segmented(group, metric.key)
    best = fair and metric.sign != 0 and len(others) > 1 and not any(metric.better(other, value) for other in others)
    floor = run.floor.get(metric.key)
    judged = floor is not None and metric.sign and not run.floor_of_other_cases(metric.key)
    found = [BELOW_FLOOR] if judged and floor is not None and not metric.better(value, floor) else []
    test = next((t for t in marks.tests if (t.run, t.metric) == (run.name, metric.key)), None)
    found += [NOT_DIFFERENT] if test is not None and not test.significant else []
    spread, ends = run.spread.get(metric.key), marks.intervals.get((run.name, metric.key))
    return Cell(
        metric.plain(value),
        value,
        best,
        tuple(found),
        "" if spread is None else metric.plain(spread),
        "" if ends is None else f"{metric.plain(ends[0])} to {metric.plain(ends[1])}",
        None if test is None else test.p,
        _of(run.num_scored(metric.key), run.num_cases, metric),
    )


def _of(count: int | None, total: int | None, metric: Metric) -> str:
    """Cases of a mean, of fewer than all and of any matched error."""
    return "" if count is None or total is None or (count >= total and not metric.beside) else f"{count} of {total}"


def _floor(group: Sequence[ScoredRun], metrics: Sequence[Metric], before: Sequence[Cell], number: int) -> Row:
    name, run = "Floor: mean training volume", group[0]
    scores = []
    for metric in metrics:
        value = run.floor.get(metric.key)
        if value is None or otherwise_segmented(group, metric.key):
            scores.append(Cell())
            continue
        count = run.num_scored(f"floor_{metric.key}")
        scores.append(Cell(metric.plain(value), value, scored=_of(count, run.num_cases, metric)))
    return Row((Cell(name, name), *before, *[Cell()] * len(COSTS), *scores), True, number)


def _legend(rows: Sequence[Row]) -> list[str]:
    cells = [cell for row in rows for cell in row.cells]
    explained = {
        "Bold: the best of a test set.": any(cell.best for cell in cells),
        f"{BELOW_FLOOR}: no better than the floor, the mean of all training volumes.": any(
            BELOW_FLOOR in cell.marks for cell in cells
        ),
        "n of m: the mean is over the n of m cases that have a value.": any(cell.scored for cell in cells),
        "±: standard deviation over seeds.": any(cell.spread for cell in cells),
    }
    return [sentence for sentence, used in explained.items() if used]
