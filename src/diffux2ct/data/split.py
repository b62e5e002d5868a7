"""Who is held out: a split by patient, so that no patient is on both sides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffux2ct.errors import UserError


def split_patients(patients: Sequence[str], split: Mapping[str, Any], seed: int) -> dict[str, list[str]]:
    """{"train", "val", "test"} -> sorted patients; train is what val and test leave.

    split: ``val`` and ``test``, each a count (int), a fraction of all patients (float: at least one patient, and never
    the last one; 1.0 = all), or a list of patients. Drawn with ``seed``; test first, so that val does not move it.
    Raises UserError for unknown patients, overlapping lists and counts that leave nobody to train on.
    """
    unknown = set(split) - {"val", "test"}
    if unknown:
        raise UserError(f"split has unknown keys {sorted(unknown)}; it takes val and test")
    named = {part: _named(part, split.get(part), patients) for part in ("test", "val")}
    both = set(named["test"]) & set(named["val"])
    if both:
        raise UserError(f"split: {sorted(both)} are in both test and val")
    rest = [p for p in sorted(patients) if p not in named["test"] and p not in named["val"]]
    rest = [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))]
    result = {}
    for part in ("test", "val"):
        count = _count(part, split.get(part), len(patients), len(rest))
        result[part] = sorted([*named[part], *rest[:count]])
        rest = rest[count:]
    return {"train": sorted(rest), "val": result["val"], "test": result["test"]}


def _named(part: str, value: Any, patients: Sequence[str]) -> list[str]:
    if value is None or isinstance(value, int | float):
        return []
    if isinstance(value, str):
        raise UserError(f"split.{part}={value}: give a count, a fraction or a list [a,b] of patients")
    names = [str(v) for v in value]
    missing = sorted(set(names) - set(patients))
    if missing:
        some = ", ".join(sorted(patients)[:8]) + (", ..." if len(patients) > 8 else "")
        raise UserError(f"split.{part}: unknown patient {', '.join(missing)}; there are {some}")
    return names


def _count(part: str, value: Any, total: int, left: int) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0
    if value < 0 or (isinstance(value, float) and value > 1.0):
        raise UserError(f"split.{part}={value}: give a count, a fraction from 0 to 1, or a list of patients")
    if isinstance(value, float):
        if value == 1.0:
            return left
        return min(max(1, round(value * total)), max(left - 1, 0)) if value > 0 else 0
    if value > 0 and value >= left:
        raise UserError(
            f"split.{part}={value} of {total} patients leaves nobody to train on; set dataset.prepare.split.{part}"
        )
    return value
