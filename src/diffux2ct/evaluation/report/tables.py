"""The numbers of the report, as its templates show them: settings, metrics beside their floor, every case."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffux2ct.diffusion.samplers.sampling import sampling_words
from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS
from diffux2ct.evaluation.metric import CASE_COUNTS, RECORDS_KEY, Metric, metric_of, plural


def number(value: Any) -> float | None:
    """A finite number, or None for what is absent: None, an empty cell, NaN."""
    if value is None or value == "":
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def values(rows: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[str, float]]:
    """(case, value) of the cases that have this metric."""
    for row in rows:
        value = number(row.get(key))
        if value is not None:
            yield str(row["case_id"]), value


LABELS = {"num_cases": "cases", "xray_source": "X-rays", "of_the_set": "metrics of the set"}
"""Names of settings that read better than their key in metrics.json."""

_LEADING = ("dataset", "split", "sampler", "sampling", "seed", "num_cases", "seconds_per_volume")
_ELSEWHERE = {*("run", "root", "floor", "num_scored", "unavailable", "intervals", "bootstrap", "left_out")}
_ELSEWHERE |= {"uncertainty", RECORDS_KEY}

NUM_FIGURES = 5
FIGURES = ("psnr3d", "ssim", "mae", "lpips", "dice_bone", "psnr", "ssim3d")
"""Metrics for the first screen, in this order: the first five of them that were computed."""


def facts(summary: Mapping[str, Any], metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of the settings that this evaluation was run with."""
    keys = dict.fromkeys((*(key for key in _LEADING if key in summary), *summary))
    shown_elsewhere = _ELSEWHERE.union(metrics)
    shown = [(key, _plain(summary[key])) for key in keys if key not in shown_elsewhere and summary[key] is not None]
    return [(LABELS.get(k, k.replace("_", " ")), text if len(text) <= 160 else text[:157] + "…") for k, text in shown]


def subtitle(summary: Mapping[str, Any]) -> str:
    """Data set, split, number of cases and sampler in one line."""
    place = " ".join(str(summary[key]) for key in ("dataset", "split") if summary.get(key))
    count = summary.get("num_cases")
    cases = plural(count, "case") if count is not None else ""
    sampling = sampling_words(summary.get("sampling") or {})
    return " · ".join(part for part in (place, cases, sampling) if part)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "defaults"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def compare_with_floor(
    metric: Metric, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], headline: bool = False
) -> dict[str, Any]:
    """A metric of this run (metrics.json, ``rows`` of per_case.csv) beside its floor, as text; "–" without a value.

    cases: number with a value, "5 of 8" where some have none, and the floor's where it differs. side: "better" or
    "worse" than the floor; empty without a direction, and where the two means are over different cases.
    """
    key = metric.key
    value, floor = number(summary.get(key)), number((summary.get("floor") or {}).get(key))
    ends = (summary.get("intervals") or {}).get(key)
    scored = [case for case, _ in values(rows, key)]
    floor_scored = [case for case, _ in values(rows, f"floor_{key}")]
    same_cases = scored == floor_scored
    cases = str(len(scored) or "–") + (f" of {len(rows)}" if 0 < len(scored) < len(rows) else "")
    cases += f" (floor: {len(floor_scored)})" if scored and floor_scored and not same_cases else ""
    difference = None if value is None or floor is None else value - floor
    return {
        "title": metric.title,
        "about": metric.about,
        "direction": metric.direction,
        "value": _optional(metric, value),
        "interval": f"{metric.text(ends[0])} to {metric.text(ends[1])}" if ends else "–",
        "floor": _optional(metric, floor),
        "difference": _optional(metric, difference, sign=True),
        "side": "" if difference is None or not same_cases else metric.side(difference),
        "cases": cases,
        "headline": headline,
    }


def _optional(metric: Metric, value: float | None, sign: bool = False) -> str:
    return "–" if value is None else metric.text(value, sign)


def _headline(summary: Mapping[str, Any]) -> str | None:
    protocol = PROTOCOLS.get(str(summary.get("protocol")))
    return None if protocol is None else protocol.headline


def headline_figures(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """The figures of the first screen; the protocol's own headline takes the place of PSNR3D."""
    first = _headline(summary)
    wanted: list[str] = [*([first] if first else []), *FIGURES[first is not None :], "psnr3d", *metrics]
    # An error of matched structures stands after the share that it must be read with.
    wanted = [each for key in wanted for each in (metric_of(key).beside, key) if each]
    keys = [key for key in dict.fromkeys(wanted) if key in metrics and number(summary.get(key)) is not None]
    return [compare_with_floor(metric_of(key), summary, rows) for key in keys[:NUM_FIGURES]]


def summary_table(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Every metric in groups, with what is unavailable and notes on how the numbers were computed."""
    has_intervals = bool(summary.get("intervals"))
    interval = ["95% interval"] if has_intervals else []
    headline = _headline(summary)
    groups: dict[str, list[dict[str, Any]]] = {}
    for metric in map(metric_of, metrics):
        line = compare_with_floor(metric, summary, rows, metric.key == headline)
        cells = [line["value"], *([line["interval"]] if has_intervals else []), line["floor"]]
        groups.setdefault(metric.group, []).append({**line, "cells": cells})
    unavailable = []
    for key, text in (summary.get("unavailable") or {}).items():
        # The command that helps follows the last "; ".
        reason, _, command = str(text).rpartition("; ")
        unavailable.append((metric_of(key).title, reason, command))
    return {
        "columns": ["Metric", "This run", *interval, "Floor", "Difference", "Cases", ""],
        "groups": list(groups.items()),
        "unavailable": unavailable,
        "notes": _notes(summary, rows),
    }


def _notes(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The protocol, the intervals, and items that were left out."""
    notes = []
    protocol = PROTOCOLS.get(str(summary.get("protocol")))
    if protocol is not None:
        headline = metric_of(protocol.headline).title
        notes.append(f"Protocol {protocol.name}: {protocol.about}. Its number to quote is {headline}.")
    drawn = summary.get("bootstrap")
    if summary.get("intervals") and isinstance(drawn, Mapping):
        notes.append(
            f"Intervals: of the mean, from {drawn['num_resamples']} bootstrap resamples of {drawn['over']}, "
            f"seed {drawn['seed']}."
        )
    if summary.get("num_scored"):
        notes.append(
            "n of m cases: the mean is over the n cases that have a value. A distance is measured on matched "
            "structures only, so read it with Dice, recall and the number of cases; a method that matches only the "
            "easy ones has the smaller distance."
        )
    for key, count in (summary.get("left_out") or {}).items():
        where = plural(sum(1 for _, value in values(rows, key) if value), "case")
        notes.append(f"Left out ({key}): {count} in {where}, {CASE_COUNTS.get(key, '')}.")
    return notes


Cell = tuple[Any, str, str]
"""The value that a cell of the table of cases sorts by, its text, and the floor's text."""


def case_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Headings, and a row of cells for each case."""
    counts = [Metric(key, key, digits=0) for key in CASE_COUNTS]
    known = [m for m in [*map(metric_of, metrics), *counts] if any(True for _ in values(rows, m.key))]
    table: list[list[Cell]] = []
    for row in rows:
        cells: list[Cell] = [(row[key], str(row[key]), "") for key in ("case_id", "patient")]
        for metric in known:
            value, floor = number(row.get(metric.key)), number(row.get(f"floor_{metric.key}"))
            below = "" if floor is None else metric.plain(floor)
            cells.append(("", "–", below) if value is None else (value, metric.plain(value), below))
        table.append([*cells, (row["seconds"], f"{row['seconds']:.3g}", "")])
    return {"columns": ["Case", "Patient", *(metric.title for metric in known), "Seconds"], "rows": table}
