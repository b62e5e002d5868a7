"""Scored runs: their scores and costs, and groups that were scored on the same cases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from diffux2ct.arguments import check_choice
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import CASE_COUNTS, Metric, find_metric, metric_of, plural
from diffux2ct.evaluation.statistics import ALPHA
from diffux2ct.reconstructors.cost import Cost

FLOOR_TOLERANCE = 1e-3
"""Relative difference up to which two floors are the same: other machines round otherwise, other data differ more."""

LARGEST = 1e15
"""Numbers of this size and more are no scores, counts or seconds: a file that holds one is damaged."""

HEADLINE = ("psnr3d", "psnr", "ssim", "ssim3d", "mae", "lpips", "dice_bone")
"""The paper's metrics, and one each of errors in HU, of perception and of anatomy."""

NUM_DEFAULT_METRICS = 12
"""With more metrics than this a table is not readable: then only `HEADLINE` is shown unless more is asked for."""


@dataclass(frozen=True)
class CaseScores:
    """per_case.csv: ``scores`` [cases] by metric, the floor's under ``floor_<metric>``; NaN where a cell is empty."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    scores: Mapping[str, np.ndarray]

    def in_order(self, cases: Sequence[str]) -> "CaseScores":
        """The same cases in another order: that of ``cases``, which must be all of them."""
        if tuple(cases) == self.cases:
            return self
        if sorted(cases) != sorted(self.cases):
            raise ValueError("these are not the same cases")
        place = {case: index for index, case in enumerate(self.cases)}
        order = [place[case] for case in cases]
        patients = tuple(self.patients[index] for index in order)
        return CaseScores(tuple(cases), patients, {key: values[order] for key, values in self.scores.items()})


@dataclass(frozen=True)
class ScoredRun:
    """One row: an evaluation, and its run's settings and costs; None where unknown.

    experiment: the same for runs that differ in their seed alone. seeds: more than one where such runs were merged.
    spread: standard deviation over the merged runs, by metric. merged: their evaluations' folders. method: the model's
    name.
    """

    name: str
    folder: Path
    summary: Mapping[str, Any]
    cases: CaseScores | None = None
    steps: int | None = None
    batch_size: int | None = None
    seeds: tuple[int, ...] = ()
    cost: Cost | None = None
    machine: str | None = None
    train_set: str | None = None
    experiment: str = ""
    spread: Mapping[str, float] = field(default_factory=dict)
    merged: tuple[Path, ...] = ()
    method: str | None = None

    @property
    def volumes_seen(self) -> int | None:
        """Training steps times the global batch."""
        return None if self.steps is None or self.batch_size is None else self.steps * self.batch_size

    @property
    def floor(self) -> Mapping[str, float]:
        """The mean training volume's scores on the same cases."""
        return self.summary.get("floor") or {}

    @property
    def num_cases(self) -> int | None:
        """Cases that were reconstructed."""
        return self.summary.get("num_cases") if self.cases is None else len(self.cases.cases)

    def score(self, key: str) -> float | None:
        """A mean over the cases that have a value; None where this run has no such number."""
        value = self.summary.get(key)
        return float(value) if is_number(value) else None

    def values(self, key: str) -> np.ndarray | None:
        """By case [cases], NaN where a case has none; None for a metric of the whole set, or without per_case.csv."""
        return None if self.cases is None else self.cases.scores.get(key)

    def num_scored(self, key: str) -> int | None:
        """Number of cases with a value, over which the mean is taken; all for a metric of the whole set."""
        values = self.values(key)
        if values is not None:
            return int(np.isfinite(values).sum())
        return (self.summary.get("num_scored") or {}).get(key, self.num_cases)

    def floor_of_other_cases(self, key: str) -> bool:
        """True if the floor's mean is over other cases than the score's, as far as is recorded."""
        own, floor = self.values(key), self.values(f"floor_{key}")
        if own is not None and floor is not None:
            return not np.array_equal(np.isfinite(own), np.isfinite(floor))
        return self.num_scored(key) != self.num_scored(f"floor_{key}")


@dataclass(frozen=True)
class Difference:
    """One test: ``run`` minus ``reference`` in one metric, p before and after Holm's correction.

    difference: mean over the cases that both have a value in, with its 95 % interval from resampling patients. It is
    the difference of the two means in the table only where both have a value in all cases. same_cases: False where one
    has a value in a case that the other has none in; then neither is called better.
    """

    run: str
    reference: str
    metric: str
    difference: float
    interval: tuple[float, float] | None
    p_raw: float
    p: float
    same_cases: bool = True

    @property
    def significant(self) -> bool:
        """True if the difference is larger than chance explains, at `ALPHA`."""
        return self.p < ALPHA


def is_number(value: Any) -> TypeGuard[float]:
    """True for a value of metrics.json that is a number of a size that scores, counts and seconds can have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def choose_metrics(runs: Sequence[ScoredRun], wanted: Sequence[str] | None) -> list[Metric]:
    """The metrics to show: those of ``wanted``, else those that the runs have; ["all"] leaves none out.

    UserError: no run has a metric of that name, or any.
    """
    # Metrics of metrics.json have a floor, a value per case or a record: the other entries are settings.
    found: dict[str, None] = {}
    for run in runs:
        per_case = {} if run.cases is None else run.cases.scores
        described = [key for key in run.summary if find_metric(key) is not None]
        for key in [*run.floor, *(k for k in per_case if not k.startswith("floor_")), *described]:
            if key not in CASE_COUNTS and run.score(key) is not None:
                found.setdefault(key)
    if not found:
        raise UserError(f"{runs[0].folder}: metrics.json holds no metric; run evaluate.py again")
    if wanted is None:
        few = found if len(found) <= NUM_DEFAULT_METRICS else [key for key in HEADLINE if key in found] or found
        return [metric_of(key) for key in few]
    if list(wanted) == ["all"]:
        return [metric_of(key) for key in found]
    for key in wanted:
        check_choice("--metrics", key, found)
    # An error of matched structures is never shown without its share.
    shown = [key for each in wanted for key in (each, metric_of(each).beside) if key in found]
    return [metric_of(key) for key in dict.fromkeys(shown)]


def test_sets(runs: Sequence[ScoredRun]) -> list[list[ScoredRun]]:
    """The runs in groups that were scored alike: same cases in whatever order, X-rays, protocol and floor.

    The floor distinguishes data sets whose cases have the same names, and training sets whose mean differs. A run must
    agree with all of its group: one without per_case.csv agrees with runs that do not with each other.
    """
    groups: list[list[ScoredRun]] = []
    for run in runs:
        alike = next((g for g in groups if not any(differences(other, run) for other in g)), None)
        groups.append([run]) if alike is None else alike.append(run)
    return groups


test_sets.__test__ = False  # type: ignore[attr-defined]  # it is no test, whatever pytest reads in its name


def differences(a: ScoredRun, b: ScoredRun) -> list[str]:
    """Differences in the scoring of two runs; empty where their scores may be compared."""
    # An evaluation older than a setting has its value of then.
    settings = {"dataset": ("data set", None), "split": ("split", None)}
    settings |= {"xray_source": ("X-rays", "paired"), "protocol": ("protocol", "paper")}
    found = [
        word for key, (word, before) in settings.items() if a.summary.get(key, before) != b.summary.get(key, before)
    ]
    if a.cases is not None and b.cases is not None:
        same = sorted(a.cases.cases) == sorted(b.cases.cases)
    else:
        same = a.summary.get("num_cases") == b.summary.get("num_cases")
    found += [] if same else ["cases"]
    # The floor of a segmentation depends on the network, which separates columns and not test sets.
    shared = {key for key in a.floor if key in b.floor and not depends_on_segmenter(key)}
    if any(not math.isclose(a.floor[k], b.floor[k], rel_tol=FLOOR_TOLERANCE) for k in shared) and not found:
        found.append("floor (the volumes or the training sets differ)")
    return found


def depends_on_segmenter(key: str) -> bool:
    """True for a metric of structures that a network segmented; bone is segmented by a threshold."""
    if key.startswith("segmented_"):
        return True
    family, _, structure = key.partition("_")
    return family in ("dice", "hd95") and structure not in ("", "bone")


def test_set_name(run: ScoredRun) -> str:
    """Data set, split and number of cases of a run's evaluation, in words."""
    summary = run.summary
    words = [str(summary[key]) for key in ("dataset", "split") if summary.get(key)]
    if summary.get("xray_source", "paired") != "paired":
        words.append(f"with {summary['xray_source']} X-rays")
    count = summary.get("num_cases")
    patients = f" of {plural(len(set(run.cases.patients)), 'patient')}" if run.cases else ""
    cases = f", {plural(count, 'case')}{patients}" if count else ""
    return " ".join(words) + cases + (f", protocol {summary['protocol']}" if summary.get("protocol") else "")


test_set_name.__test__ = False  # type: ignore[attr-defined]
