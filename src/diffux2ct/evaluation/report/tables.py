"""The tables of the report: what was evaluated, every metric beside its floor, every case."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
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
"""Header entries that read better under another name than their key in metrics.json."""

_LEADING = ("dataset", "split", "sampler", "sampling", "seed", "num_cases", "seconds_per_volume")
_ELSEWHERE = {
    "run",
    "root",
    "floor",
    "num_scored",
    "unavailable",
    "intervals",
    "bootstrap",
    "left_out",
    RECORDS_KEY,
}


def facts(summary: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The header's list of what was evaluated and how."""
    items = []
    for key in [
        *(key for key in _LEADING if key in summary),
        *(key for key in summary if key not in _LEADING),
    ]:
        value = summary[key]
        if key in _ELSEWHERE or key in metrics or value is None:
            continue
        text = _plain(value)
        text = text if len(text) <= 160 else text[:157] + "…"
        items.append(
            f"<div><dt>{escape(LABELS.get(key, key.replace('_', ' ')))}</dt><dd>{escape(text)}</dd></div>"
        )
    return f"<dl>{''.join(items)}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "defaults"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def summary_table(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> str:
    """Every metric: this run, its interval where there is one, the floor, their difference, the number of cases."""
    intervals = summary.get("intervals") or {}
    columns = [
        "Metric",
        "This run",
        *(["95% interval"] if intervals else []),
        "Floor",
        "Difference",
        "Cases",
        "",
    ]
    head = "".join(f"<th scope=col>{column}</th>" for column in columns)
    known = sorted((metric_of(key) for key in metrics), key=_group_order(metrics))
    protocol = PROTOCOLS.get(str(summary.get("protocol")))
    headline = None if protocol is None else protocol.headline
    parts = []
    for group, members in groupby(known, key=lambda metric: metric.group):
        lines = [_summary_row(metric, summary, rows, intervals, metric.key == headline) for metric in members]
        parts.append(f"<tbody><tr class=group><th colspan={len(columns)} scope=rowgroup>{group}</th></tr>")
        parts.append("".join(lines) + "</tbody>")
    if summary.get("unavailable"):
        parts.append(_unavailable(summary["unavailable"], len(columns)))
    table = (
        f"<div class=scroll><table class=summary><thead><tr>{head}</tr></thead>{''.join(parts)}</table></div>"
    )
    return table + "".join(f"<p class=note>{escape(note)}</p>" for note in _notes(summary, rows))


def _notes(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the numbers came about: the protocol, the intervals, what was left out."""
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


def _summary_row(
    metric: Metric,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Any],
    is_headline: bool,
) -> str:
    value, floor = number(summary.get(metric.key)), number((summary.get("floor") or {}).get(metric.key))
    count = sum(1 for _ in values(rows, metric.key))
    cells = [f"<td>{_optional(metric, value)}</td>"]
    if intervals:
        ends = intervals.get(metric.key)
        cells.append(f"<td>{f'{metric.text(ends[0])} to {metric.text(ends[1])}' if ends else '–'}</td>")
    cells.append(f"<td>{_optional(metric, floor)}</td>")
    cells.append(_difference(metric, value, floor))
    cells.append(f"<td>{count or '–'}</td>")
    direction = f" <small>({metric.direction})</small>" if metric.direction else ""
    note = escape(metric.about) + direction
    name = escape(metric.title) + (" <em>headline</em>" if is_headline else "")
    kind = " class=headline" if is_headline else ""
    return f"<tr{kind}><th scope=row>{name}</th>{''.join(cells)}<td class=about>{note}</td></tr>"


def _optional(metric: Metric, value: float | None) -> str:
    return "–" if value is None else escape(metric.text(value))


def _difference(metric: Metric, value: float | None, floor: float | None) -> str:
    if value is None or floor is None:
        return "<td>–</td>"
    side, text = metric.side(value - floor), escape(metric.text(value - floor, sign=True))
    return f"<td class={side}>{text} <small>{side}</small></td>" if side else f"<td>{text}</td>"


def _unavailable(reasons: Mapping[str, str], columns: int) -> str:
    """Metrics that could not be computed, with the reason and the command that would help (after the last "; ")."""
    lines = []
    for key, text in reasons.items():
        reason, _, command = str(text).rpartition("; ")
        told = f"{escape(reason)}<br><code>{escape(command)}</code>" if reason else escape(command)
        lines.append(
            f"<tr><th scope=row>{escape(metric_of(key).title)}</th>"
            f"<td colspan={columns - 1} class=about>{told}</td></tr>"
        )
    head = f"<tr class=group><th colspan={columns} scope=rowgroup>Unavailable here</th></tr>"
    return f"<tbody class=unavailable>{head}{''.join(lines)}</tbody>"


def case_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Every case with its metrics, the floor of the same case in small; a click on a heading sorts."""
    known = [metric_of(key) for key in metrics if any(True for _ in values(rows, key))]
    counts = [key for key in CASE_COUNTS if any(True for _ in values(rows, key))]
    columns = ["Case", "Patient", *[metric.title for metric in known], *counts, "Seconds"]
    head = "".join(f"<th scope=col><button type=button>{escape(column)}</button></th>" for column in columns)
    body = []
    for row in rows:
        cells = [_cell(row[key], escape(str(row[key]))) for key in ("case_id", "patient")]
        for metric in known:
            value, floor = number(row.get(metric.key)), number(row.get(f"floor_{metric.key}"))
            text = "–" if value is None else f"{value:.{metric.digits}f}"
            small = "" if floor is None else f" <small>{floor:.{metric.digits}f}</small>"
            cells.append(_cell("" if value is None else value, text + small))
        for key in counts:
            count = number(row.get(key))
            cells.append(_cell("", "–") if count is None else _cell(int(count), f"{count:.0f}"))
        cells.append(_cell(row["seconds"], f"{row['seconds']:.3g}"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<table id=cases><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class='scroll tall' tabindex=0 role=region aria-label='Table of cases'>{table}</div>"


def _cell(value: Any, text: str) -> str:
    """A table cell that sorts by ``value`` whatever it shows."""
    return f"<td data-v='{escape(str(value))}'>{text}</td>"
