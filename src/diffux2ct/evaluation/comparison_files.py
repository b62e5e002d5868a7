"""Reads what evaluate.py left, metrics.json and per_case.csv, and refuses what no evaluation writes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.errors import UserError
from diffux2ct.evaluation.comparison import CaseScores, is_number, plural

_TEXTS = ("run", "dataset", "split", "xray_source", "protocol", "weights", "root", "processor")
_COUNTS = ("num_cases", "num_train_cases", "batch_size", "threads", "seconds_per_volume")
_SECTIONS = ("sampling", "unavailable", "segmenter")
_SECTIONS_OF_NUMBERS = ("floor", "num_scored")


def read_evaluation(folder: Path) -> tuple[dict[str, Any], CaseScores | None]:
    """metrics.json and per_case.csv (None where there is none) of an evaluation's folder.

    Raises:
        UserError: one of them is damaged, or they are not of the same cases.
    """
    path, table = folder / "metrics.json", folder / "per_case.csv"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON; run evaluate.py again") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: not what evaluate.py writes; run evaluate.py again")
    wrong = _wrong(summary)
    if wrong:
        raise UserError(f"{path}: not what evaluate.py writes: {wrong}; run evaluate.py again")
    cases = _read_cases(table) if table.is_file() else None
    told = summary.get("num_cases")
    if cases is not None and told is not None and told != len(cases.cases):
        counts = f"{plural(len(cases.cases), 'case')}, and metrics.json is of {told}"
        raise UserError(f"{table}: holds {counts}; run evaluate.py again")
    return summary, cases


def _wrong(summary: dict[str, Any]) -> str:
    """What is not as an evaluation writes it of all that a comparison reads; "" where nothing is.

    What is missing or null was not known, but a floor and a number of cases are numbers.
    """
    for key in _TEXTS:
        if not isinstance(summary.get(key), str | None):
            return f"{key} is no text"
    for key in _COUNTS:
        if summary.get(key) is not None and not is_number(summary[key]):
            return f"{key} is no number"
    for key in (*_SECTIONS, *_SECTIONS_OF_NUMBERS):
        if not isinstance(summary.get(key), dict | None):
            return f"{key} is no section"
    for key in _SECTIONS_OF_NUMBERS:
        for name, value in (summary.get(key) or {}).items():
            if not is_number(value):
                return f"{key} of {name} is no number"
    eta = (summary.get("sampling") or {}).get("eta")
    return "" if eta is None or is_number(eta) else "eta is no number"


def _read_cases(path: Path) -> CaseScores:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            names = [n for n in reader.fieldnames or () if n not in ("case_id", "patient", "seconds")]
            rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a line is cut short, or too long")
        scores = {n: np.array([float(row[n]) if row[n] else np.nan for row in rows]) for n in names}
        ids = tuple((row["case_id"], row["patient"]) for row in rows)
        if len({case for case, _ in ids}) < len(ids):
            raise ValueError("a case stands there twice")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged; run evaluate.py again") from error
    return CaseScores(tuple(case for case, _ in ids), tuple(patient for _, patient in ids), scores)
