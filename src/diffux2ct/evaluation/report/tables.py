"""The numbers of the report, as its templates show them: settings, metrics beside their floor, every case."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS
from diffux2ct.evaluation.metric import CASE_COUNTS, RECORDS_KEY, Metric, metric_of


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
_ELSEWHERE = {*("run", "root", "floor", "num_scored", "unavailable", "intervals", "bootstrap", "left_out"), RECORDS_KEY}

NUM_FIGURES = 5
FIGURES = ("psnr3d", "ssim", "mae", "lpips", "dice_bone", "psnr", "ssim3d")
"""Metrics for the first screen, in this order: the first five of them that were computed."""


def facts(summary: Mapping[str, Any], metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of the settings that this evaluation was run with."""
    keys = dict.fromkeys((*(key for key in _LEADING if key in summary), *summary))
    shown_elsewhere = _ELSEWHERE.union(metrics)
    items = []
    for key in keys:
        if key not in shown_elsewhere and summary[key] is not None:
            text = _plain(summary[key])
            text = text if len(text) <= 160 else text[:157] + "…"
            items.append((LABELS.get(key, key.replace("_", " ")), text))
    return items


def subtitle(summary: Mapping[str, Any]) -> str:
    """Data set, split, number of cases and sampler in one line."""
    place = " ".join(str(summary[key]) for key in ("dataset", "split") if summary.get(key))
    count = summary.get("num_cases")
    cases = f"{count} case{'' if count == 1 else 's'}" if count is not None else ""
    sampling = summary.get("sampling") or {}
    steps = sampling.get("num_inference_steps")
    sampler = f"{sampling.get('name', 'sampler')}, {steps} steps" if steps else ""
    return " · ".join(part for part in (place, cases, sampler) if part)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "defaults"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(frozen=True)
class Comparison:
    """A metric of this run beside its floor, as text; "–" where there is no value.

    cases: how many have a value, "5 of 8" where some have none. side: "better" or "worse" than the floor; empty
    without a direction, and where the two means are over different cases, which says nothing.
    """

    title: str
    about: str
    direction: str
    value: str
    interval: str
    floor: str
    difference: str
    side: str
    cases: str
    headline: bool = False


def compare_with_floor(
    key: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], headline: bool = False
) -> Comparison:
    """The metric ``key`` of metrics.json, ``rows`` being those of per_case.csv."""
    metric = metric_of(key)
    value, floor = number(summary.get(key)), number((summary.get("floor") or {}).get(key))
    ends = (summary.get("intervals") or {}).get(key)
    scored = [case for case, _ in values(rows, key)]
    same_cases = scored == [case for case, _ in values(rows, f"floor_{key}")]
    difference = None if value is None or floor is None else value - floor
    return Comparison(
        metric.title,
        metric.about,
        metric.direction,
        _optional(metric, value),
        f"{metric.text(ends[0])} to {metric.text(ends[1])}" if ends else "–",
        _optional(metric, floor),
        _optional(metric, difference, sign=True),
        "" if difference is None or not same_cases else metric.side(difference),
        "–" if not scored else f"{len(scored)}" if len(scored) == len(rows) else f"{len(scored)} of {len(rows)}",
        headline,
    )


def _optional(metric: Metric, value: float | None, sign: bool = False) -> str:
    return "–" if value is None else metric.text(value, sign)


def _headline(summary: Mapping[str, Any]) -> str | None:
    protocol = PROTOCOLS.get(str(summary.get("protocol")))
    return None if protocol is None else protocol.headline


def headline_figures(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> list[Comparison]:
    """The figures of the first screen; the protocol's own headline takes the place of PSNR3D."""
    first = _headline(summary)
    wanted: list[str] = [*([first] if first else []), *FIGURES[first is not None :], "psnr3d", *metrics]
    keys = [key for key in dict.fromkeys(wanted) if key in metrics and number(summary.get(key)) is not None][
        :NUM_FIGURES
    ]
    return [compare_with_floor(key, summary, rows) for key in keys]


def summary_table(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Every metric in groups, with what is unavailable and notes on how the numbers were computed."""
    has_intervals = bool(summary.get("intervals"))
    interval = ["95% interval"] if has_intervals else []
    known = sorted(map(metric_of, metrics), key=_group_order(metrics))
    headline = _headline(summary)
    groups = []
    for group, members in groupby(known, key=lambda metric: metric.group):
        lines = [compare_with_floor(m.key, summary, rows, m.key == headline) for m in members]
        groups.append((group, [_line(line, has_intervals) for line in lines]))
    unavailable = []
    for key, text in (summary.get("unavailable") or {}).items():
        # The command that helps follows the last "; ".
        reason, _, command = str(text).rpartition("; ")
        unavailable.append((metric_of(key).title, reason, command))
    return {
        "columns": ["Metric", "This run", *interval, "Floor", "Difference", "Cases", ""],
        "groups": groups,
        "unavailable": unavailable,
        "notes": _notes(summary, rows),
    }


def _line(line: Comparison, has_intervals: bool) -> dict[str, Any]:
    cells = [line.value, *([line.interval] if has_intervals else []), line.floor]
    return {**vars(line), "cells": cells}


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
        cases = sum(1 for _, value in values(rows, key) if value)
        where = f"{cases} case{'' if cases == 1 else 's'}"
        notes.append(f"Left out ({key}): {count} in {where}, {CASE_COUNTS.get(key, '')}.")
    return notes


def _group_order(metrics: Sequence[str]) -> Any:
    """Sorts by the group's first metric, so that groups and their members keep the order in which they were named."""
    first: dict[str, int] = {}
    for place, key in enumerate(metrics):
        first.setdefault(metric_of(key).group, place)
    return lambda metric: first[metric.group]


Cell = tuple[Any, str, str]
"""The value that a cell of the table of cases sorts by, its text, and the floor's text."""


def case_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Headings, and a row of cells for each case."""
    known = [metric_of(key) for key in metrics if any(True for _ in values(rows, key))]
    counts = [key for key in CASE_COUNTS if any(True for _ in values(rows, key))]
    table: list[list[Cell]] = []
    for row in rows:
        cells: list[Cell] = [(row[key], str(row[key]), "") for key in ("case_id", "patient")]
        for metric in known:
            value, floor = number(row.get(metric.key)), number(row.get(f"floor_{metric.key}"))
            below = "" if floor is None else f"{floor:.{metric.digits}f}"
            cells.append(("", "–", below) if value is None else (value, f"{value:.{metric.digits}f}", below))
        for count in (number(row.get(key)) for key in counts):
            cells.append(("", "–", "") if count is None else (int(count), f"{count:.0f}", ""))
        table.append([*cells, (row["seconds"], f"{row['seconds']:.3g}", "")])
    return {"columns": ["Case", "Patient", *(metric.title for metric in known), *counts, "Seconds"], "rows": table}
