"""Runs with made-up scores: 20 cases of 10 patients."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from diffux2ct.comparison.runs import CaseScores, ScoredRun

PATIENTS = tuple(f"p{i // 2}" for i in range(20))


def scored(name: str, values=None, *, floor: float = 15.0, seed: int = 0, experiment: str = "0", **summary):
    values = np.linspace(18, 22, 20) if values is None else np.asarray(values, float)
    count = len(values)
    cases = CaseScores(tuple(f"c{i}" for i in range(count)), PATIENTS[:count], {"psnr3d": values})
    content = {
        "psnr3d": float(values.mean()),
        "floor": {"psnr3d": floor},
        "num_cases": count,
        "dataset": "phantom",
        "split": "test",
        "seconds_per_volume": 1.0 + seed,
        "step": 10,
        "run": name,
    }
    return ScoredRun(name, Path(f"{name}-{seed}"), content | summary, cases, 10, 4, (seed,), experiment=experiment)


def with_distances(run: ScoredRun, values: np.ndarray) -> ScoredRun:
    """With an HD95 by case, its mean over the cases that have one."""
    assert run.cases is not None
    cases = replace(run.cases, scores={**run.cases.scores, "hd95_bone": values})
    return replace(run, cases=cases, summary={**run.summary, "hd95_bone": float(np.nanmean(values))})
