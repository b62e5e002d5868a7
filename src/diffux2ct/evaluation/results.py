"""Rows of per_case.csv to the entries of metrics.json for the whole set: means, intervals, counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffux2ct.evaluation.metric import CASE_COUNTS, find_metric, metric_of, plural
from diffux2ct.evaluation.metric_set import MetricSet
from diffux2ct.evaluation.statistics import CONFIDENCE, NUM_RESAMPLES, bootstrap_interval

INTERVAL_SEED = 0
"""Of the resampling. Fixed, so that evaluations of the same scores have the same intervals."""

_NO_METRIC = {"case_id", "patient", "seconds", *CASE_COUNTS}


def summarize(rows: Sequence[Mapping[str, Any]], metrics: MetricSet) -> dict[str, Any]:
    """Means over the cases that have a value; a metric that no case has is left out.

    Under ``intervals`` the 95 % bootstrap interval over patients of each metric's mean {metric: [low, high]}, where
    there are patients enough, and under ``bootstrap`` how it was drawn. Under ``left_out`` sums of `CASE_COUNTS`.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    means = {key: float(np.mean(values[key])) for key in keys if key not in _NO_METRIC and values[key]}
    of_the_set, floors, about = metrics.finish()
    floor = {key.removeprefix("floor_"): mean for key, mean in means.items() if key.startswith("floor_")}
    own = {key: mean for key, mean in means.items() if not key.startswith("floor_")}
    counts = {key: int(sum(values[key])) for key in CASE_COUNTS if values.get(key)}
    summary = own | of_the_set
    summary |= {
        "num_cases": len(rows),
        "num_scored": {key: len(values[key]) for key in means if _stated(key, len(values[key]), len(rows))},
        "floor": floor | floors,
        "of_the_set": about,
        "unavailable": metrics.unavailable,
        "seconds_per_volume": float(np.mean([row["seconds"] for row in rows])),
    }
    return summary | ({"left_out": counts} if counts else {}) | _intervals(rows, list(own))


def _stated(key: str, count: int, num_cases: int) -> bool:
    """True if metrics.json states the number of cases of a mean: of fewer than all, and of any matched error."""
    return count < num_cases or bool(metric_of(key.removeprefix("floor_")).beside)


def score_table(summary: Mapping[str, Any]) -> str:
    """The console's table of metrics.json: each score beside its floor, with the cases that `num_scored` states.

    A score is not judged by its floor where their cases may differ, because some have no value.
    """
    floors, scored = summary["floor"], summary["num_scored"]
    shown = {key: metric_of(key) for key in summary if find_metric(key) or key in floors}
    width = max((len(metric.heading) for metric in shown.values()), default=0)
    cases = f"(floor: the mean training volume, {plural(summary['num_cases'], 'case')})"
    lines = [f"{'':{width}}{'model':>10}{'floor':>10}   {cases}"]
    for key, metric in shown.items():
        line, floor = f"{metric.heading:{width}}{summary[key]:10.3f}", floors.get(key)
        line += "" if floor is None else f"{floor:10.3f}"
        total = summary["num_cases"]
        counts = [scored.get(name, total) for name in (key, f"floor_{key}")]
        if key in scored or (floor is not None and counts[1] < total):
            line += f"   {counts[0]} of {plural(total, 'case')}"
            line += f" (floor: {counts[1]})" if floor is not None and counts[1] != counts[0] else ""
        if floor is not None and counts == [total, total] and metric.sign and not metric.better(summary[key], floor):
            line += "   no better than the floor"
        lines.append(line)
    return "\n".join([*lines, *(f"{name}: unavailable: {why}" for name, why in summary["unavailable"].items())])


def _intervals(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """``intervals`` and ``bootstrap``; nothing with too few patients."""
    patients = [str(row["patient"]) for row in rows]
    found = {}
    for key in metrics:
        scores = np.array([np.nan if (value := row.get(key)) is None else value for row in rows], float)
        ends = bootstrap_interval(scores, patients, seed=INTERVAL_SEED)
        if ends is not None:
            found[key] = list(ends)
    if not found:
        return {}
    drawn = {"confidence": CONFIDENCE, "num_resamples": NUM_RESAMPLES, "over": "patients", "seed": INTERVAL_SEED}
    return {"intervals": found, "bootstrap": drawn}
