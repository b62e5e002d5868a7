"""Runs that differ in their seed alone as one row of a comparison."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from diffux2ct.comparison.runs import CaseScores, ScoredRun, differences
from diffux2ct.errors import UserError

_NOT_AVERAGED = {"step", "num_cases", "seed", "batch_size", "num_train_cases", "threads"}
_OF_ONE_SEED = {"intervals", "bootstrap", "num_scored"}
"""Entries of one seed, which do not hold for the mean over seeds."""


def merge_seeds(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Runs of one experiment that differ in their seed alone as one row: means, and the spread over seeds.

    Only what was trained for as many steps and scored alike is merged. A case's score becomes its mean over seeds, so
    that intervals and tests stay over patients. Scores, means, spread and intervals are all of the cases that have a
    value in every seed; where that is none, or unknown, the row has no score, with the reason. UserError: the same seed
    twice.
    """
    groups: dict[Any, list[ScoredRun]] = defaultdict(list)
    for index, run in enumerate(runs):
        scored = ("sampling", "weights", "seed", "num_cases", "segmenter")
        key = (run.experiment or f"#{index}", run.steps, *(str(run.summary.get(k)) for k in scored))
        alike = next(
            (k for k, group in groups.items() if k[0] == key and not any(differences(r, run) for r in group)), None
        )
        groups[alike or (key, index)].append(run)
    return [group[0] if len(group) == 1 else _merged(group) for group in groups.values()]


def _merged(group: Sequence[ScoredRun]) -> ScoredRun:
    first = group[0]
    seeds = [seed for run in group for seed in run.seeds]
    for seed in seeds:
        if seeds.count(seed) > 1:
            names = " and ".join(run.name for run in group if seed in run.seeds)
            raise UserError(f"--merge-seeds: {names} are the same experiment with the same seed {seed}; leave one out")
    summary = {key: value for key, value in first.summary.items() if key not in _OF_ONE_SEED}
    cases = _merged_cases(group)
    means, missing = _means(group, cases)
    for key, why in missing.items():
        del summary[key]
        summary["unavailable"] = {**(summary.get("unavailable") or {}), key: why}
    summary |= {key: fmean(values) for key, values in means.items() if key not in _NOT_AVERAGED}
    names = {str(run.summary.get("run") or run.name) for run in group}
    return replace(
        first,
        name=names.pop() if len(names) == 1 else first.name,
        summary=summary,
        cases=cases,
        seeds=tuple(sorted(seeds)),
        spread={key: stdev(values) for key, values in means.items()},
        merged=tuple(run.folder for run in group),
        machine=first.machine if len({run.machine for run in group}) == 1 else None,
    )


def _merged_cases(group: Sequence[ScoredRun]) -> CaseScores | None:
    """Each case's mean over seeds, NaN where one of them has no value; None unless every seed has a per_case.csv."""
    found = [run.cases for run in group if run.cases is not None]
    if len(found) < len(group):
        return None
    first = found[0]
    columns = [each.in_order(first.cases).scores for each in found]
    shared = [key for key in first.scores if all(key in each for each in columns)]
    means = {key: np.mean([each[key] for each in columns], axis=0) for key in shared}
    return CaseScores(first.cases, first.patients, means)


def _means(group: Sequence[ScoredRun], cases: CaseScores | None) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Each seed's mean by metric, all of the same cases; and why a metric that every seed has comes to none."""
    means: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for key in group[0].summary:
        scores = [score for run in group if (score := run.score(key)) is not None]
        if len(scores) < len(group):
            continue
        if cases is not None and key in cases.scores:
            columns = [run.cases.in_order(cases.cases).scores[key] for run in group if run.cases is not None]
            shared = np.isfinite(np.sum(columns, axis=0))
            if shared.any():
                means[key] = [float(values[shared].mean()) for values in columns]
            else:
                missing[key] = "no case has a value in every seed"
        elif all(run.num_scored(key) == run.num_cases for run in group):
            means[key] = scores
        else:
            missing[key] = "seeds have no value in some cases, and without per_case.csv these are unknown"
    return means, missing
