"""Whether a column's scores are of the same thing, so that one of them may be called the best."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from diffux2ct.evaluation.comparison import FLOOR_TOLERANCE, MetricAbout, ScoredRun, depends_on_segmenter


def same_segmenter(a: ScoredRun, b: ScoredRun) -> bool:
    """Whether one network segmented for both, as far as they tell.

    An evaluation that names none may be older than the entry; its floor then tells another network.
    """
    named = [run.summary.get("segmenter") for run in (a, b)]
    if None not in named and named[0] != named[1]:
        return False
    shared = [key for key in a.floor if key in b.floor and depends_on_segmenter(key)]
    return all(math.isclose(a.floor[key], b.floor[key], rel_tol=FLOOR_TOLERANCE) for key in shared)


def otherwise_segmented(group: Sequence[ScoredRun], key: str) -> bool:
    """Whether runs of a test set have this metric from different segmentation networks."""
    if not depends_on_segmenter(key):
        return False
    scored = [run for run in group if run.score(key) is not None]
    return not all(same_segmenter(a, b) for a, b in combinations(scored, 2))


def other_cases(group: Sequence[ScoredRun], key: str) -> bool:
    """Whether the means of a test set's runs are over different cases, because some lack a value.

    Where not every run tells which cases have one, their numbers are compared.
    """
    scored = [run for run in group if run.score(key) is not None]
    if len({run.num_scored(key) for run in scored}) > 1:
        return True
    return len({_present(run, key) for run in scored} - {None}) > 1


def _present(run: ScoredRun, key: str) -> frozenset[str] | None:
    values = run.values(key)
    if run.cases is None or values is None:
        return None
    return frozenset(case for case, has in zip(run.cases.cases, np.isfinite(values), strict=True) if has)


def column_notes(sets: Sequence[Sequence[ScoredRun]], metrics: Sequence[MetricAbout]) -> list[str]:
    """In which columns no score is bold, and why."""
    segmented = [m.title for m in metrics if any(otherwise_segmented(group, m.key) for group in sets)]
    parted = [
        m.title for m in metrics if m.title not in segmented and any(other_cases(g, m.key) for g in sets)
    ]
    notes = []
    if parted:
        notes.append(
            f"Nothing bold in {', '.join(parted)}: the means are over different cases, as not every run has a value "
            "in each, and who finds less may leave the hard ones out."
        )
    if segmented:
        named = "; ".join(f"{run.name}: {_network(run.summary)}" for group in sets for run in group)
        notes.append(
            f"Neither bold nor tested: {', '.join(segmented)}; not segmented by the same network ({named})."
        )
    return notes


def _network(summary: Mapping[str, Any]) -> str:
    told = summary.get("segmenter")
    if not told:
        return "not recorded"
    step = "" if told.get("step") is None else f", step {told['step']}"
    return f"{told.get('run', 'unnamed')}{step}"
