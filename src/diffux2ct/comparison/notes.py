"""The sentences under a comparison: limits of comparing its rows, and the origin of its numbers."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from diffux2ct.comparison.runs import FLOOR_TOLERANCE, ScoredRun, depends_on_segmenter, differences, test_set_name
from diffux2ct.evaluation.metric import Metric, plural

SUPERSCRIPTS = "¹²³⁴⁵⁶⁷⁸⁹"


def table_notes(runs: Sequence[ScoredRun], sets: Sequence[Sequence[ScoredRun]], machines: Sequence[str]) -> list[str]:
    """Notes for reading the rows against each other, most important first."""
    notes = _test_sets(sets)
    notes += _alike(runs, "Volumes seen in training", lambda run: run.volumes_seen)
    notes += _alike(runs, "Seeds", lambda run: ", ".join(map(str, run.seeds)) or None)
    notes += _alike(runs, "Training set", _training_set)
    notes += _alike(runs, "Weights", lambda run: run.summary.get("weights"))
    notes += _costs(runs)
    notes += _seconds(runs, machines)
    notes += _unavailable(runs)
    return [note for note in notes if note]


def _test_sets(sets: Sequence[Sequence[ScoredRun]]) -> list[str]:
    if len(sets) == 1:
        return [f"Scored on {test_set_name(sets[0][0])}."]
    named = "; ".join(f"{chr(ord('A') + i)}: {test_set_name(group[0])}" for i, group in enumerate(sets))
    # A set was opened by a run that differs from one of the first set's, which need not be its first.
    pairs = [(run, group[0]) for group in sets[1:] for run in sets[0]]
    reasons = dict.fromkeys(word for pair in pairs for word in differences(*pair))
    return [f"Not all scored alike, so compare within a set only ({named}). They differ in {', '.join(reasons)}."]


def _alike(runs: Sequence[ScoredRun], what: str, value: Any) -> list[str]:
    """One sentence: the value of all, or the values with their runs; nothing where none is known."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for run in runs:
        groups[value(run)].append(run.name)
    known = [key for key in groups if key is not None]
    if not known:
        return []
    if len(groups) == 1:
        return [f"{what}: {known[0]}{' in every row' if len(runs) > 1 else ''}."]
    return [f"{what} not the same for all: {_by_group(groups)}."]


def _by_group(groups: Mapping[Hashable, Sequence[str]]) -> str:
    return "; ".join(f"{'unknown' if key is None else key} ({', '.join(names)})" for key, names in groups.items())


def _training_set(run: ScoredRun) -> str | None:
    count = run.summary.get("num_train_cases")
    words = [] if count is None else [plural(count, "case")]
    words += [] if run.train_set is None else [f"manifest {run.train_set[:8]}"]
    return ", ".join(words) or None


def _costs(runs: Sequence[ScoredRun]) -> list[str]:
    counted = [run for run in runs if run.cost is not None]
    if not counted:
        return []
    note = "Parameters: of the networks that a reconstruction runs"
    extra: dict[Hashable, list[str]] = defaultdict(list)
    ways: dict[str, list[str]] = defaultdict(list)
    for run in sorted(counted, key=lambda run: not run.cost.iterative):  # type: ignore[union-attr]
        assert run.cost is not None
        if run.cost.training_only:
            extra[f"{run.cost.training_only / 1e6:.2f} M"].append(run.name)
        ways[_sampler(run.summary.get("sampling") or {}) if run.cost.iterative else "one pass"].append(run.name)
    note += f"; training has a further {_by_group(extra)}." if extra else "."
    flop = "TFLOP: 2 per multiply-accumulate of convolutions and matrix products, for one volume as evaluated"
    return [note, f"{flop}: {'; '.join(f'{way} ({_names(names, counted)})' for way, names in ways.items())}."]


def _names(names: Sequence[str], of: Sequence[ScoredRun]) -> str:
    return "all" if len(names) == len(of) else ", ".join(names)


def _sampler(sampling: Mapping[str, Any]) -> str:
    words = f"{sampling.get('name', 'sampler')}, {sampling.get('num_inference_steps')} steps"
    eta = f", eta {sampling['eta']:g}" if sampling.get("eta") else ""
    return words + eta + (", z = 0" if sampling.get("perturbation") == "zero" else "")


def _seconds(runs: Sequence[ScoredRun], machines: Sequence[str]) -> list[str]:
    if not any(run.score("seconds_per_volume") is not None for run in runs):
        return []
    batches = sorted({str(run.summary["batch_size"]) for run in runs if run.summary.get("batch_size")})
    size = f", batch of {' or '.join(batches)}" if batches else ""
    if not machines:
        return [f"Time per volume{size}: on which machine is not recorded."]
    if len(machines) == 1 and all(run.machine for run in runs):
        return [f"Time per volume{size}: {machines[0]}."]
    named: Iterable[str] = (f"{SUPERSCRIPTS[min(i, 8)]} {name}" for i, name in enumerate(machines))
    unknown = "" if all(run.machine for run in runs) else "; not recorded where unmarked"
    return [f"Time per volume{size}, not all on one machine: {'; '.join(named)}{unknown}."]


def _unavailable(runs: Sequence[ScoredRun]) -> list[str]:
    """Metrics that evaluate.py could not compute, each with its reason."""
    reasons: dict[Hashable, list[str]] = defaultdict(list)
    for run in runs:
        missing = run.summary.get("unavailable")
        for name, reason in missing.items() if isinstance(missing, dict) else ():
            reasons[f"{name}: {reason}"].append(run.name)
    return [f"Not available ({_names(names, runs)}): {reason}" for reason, names in reasons.items()]


# Fairness: the best score of a column is bold only if all of them measure the same.


def same_segmenter(a: ScoredRun, b: ScoredRun) -> bool:
    """True if one network segmented for both, as far as is recorded.

    An evaluation without a name may be older than the entry; another network then shows in its floor.
    """
    named = [run.summary.get("segmenter") for run in (a, b)]
    if None not in named and named[0] != named[1]:
        return False
    shared = [key for key in a.floor if key in b.floor and depends_on_segmenter(key)]
    return all(math.isclose(a.floor[key], b.floor[key], rel_tol=FLOOR_TOLERANCE) for key in shared)


def otherwise_segmented(group: Sequence[ScoredRun], key: str) -> bool:
    """True if runs of a test set have this metric from different segmentation networks."""
    if not depends_on_segmenter(key):
        return False
    scored = [run for run in group if run.score(key) is not None]
    return not all(same_segmenter(a, b) for a, b in combinations(scored, 2))


def other_cases(group: Sequence[ScoredRun], key: str) -> bool:
    """True if the means of a test set's runs are over different cases, because some have no value.

    Runs without per_case.csv are compared by the number of cases alone.
    """
    counts, present = set(), set()
    for run in group:
        values = run.values(key)
        if run.score(key) is not None:
            counts.add(run.num_scored(key))
            if run.cases is not None and values is not None:
                present.add(frozenset(np.array(run.cases.cases)[np.isfinite(values)].tolist()))
    return len(counts) > 1 or len(present) > 1


def column_notes(sets: Sequence[Sequence[ScoredRun]], metrics: Sequence[Metric]) -> list[str]:
    """The columns without a bold score, and the reasons."""
    segmented = [m.title for m in metrics if any(otherwise_segmented(group, m.key) for group in sets)]
    parted = [m.title for m in metrics if m.title not in segmented and any(other_cases(g, m.key) for g in sets)]
    notes = []
    if parted:
        notes.append(
            f"Nothing bold in {', '.join(parted)}: the means are over different cases, as not every run has a value "
            "in each, and a run that finds less may miss the hard ones."
        )
    if segmented:
        named = "; ".join(f"{run.name}: {_network(run.summary)}" for group in sets for run in group)
        notes.append(f"Neither bold nor tested: {', '.join(segmented)}; not segmented by the same network ({named}).")
    return notes


def _network(summary: Mapping[str, Any]) -> str:
    network = summary.get("segmenter")
    if not network:
        return "not recorded"
    step = "" if network.get("step") is None else f", step {network['step']}"
    return f"{network.get('run', 'unnamed')}{step}"
