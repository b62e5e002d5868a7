"""Distributions as small inline SVG: a lane per run, a dot per case, a box over the middle half, the floor below."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from diffux2ct.evaluation.metric import Metric, metric_of
from diffux2ct.evaluation.report.tables import values
from diffux2ct.viz.pages import templates

FLOOR = "floor"
"""The lane of this name is drawn in grey."""

Lanes = Mapping[str, Sequence[tuple[str, float]]]
"""(case, value) of the cases that have one, by the lane's name."""

_WIDTH, _RIGHT = 340, 16
_MOST_DOTS, _LEAST_DOTS = 300, 30  # of a plot, and of each lane; more would overlap and make the page heavy
_LONGEST_NAME = 54  # letters that fit above a lane


class _Layout(NamedTuple):
    """Pixels: where values start, the middle of the first lane, from lane to lane, and from there up to its name."""

    left: int
    first: float
    pitch: float
    name_above: float | None = None


# Short names stand before their lane; those of runs are too long for that.
_BESIDE, _ABOVE = _Layout(46, 30.0, 32.0), _Layout(12, 36.0, 42.0, 15.0)


def distributions(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], floor: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> Markup:
    """A plot per metric that at least two cases of a run have, a lane for each run; empty where there is none.

    runs: rows of per_case.csv by name, which stands above its lane if there are several. floor: rows with the floor's.
    """
    plots, layout = [], _ABOVE if list(runs) != ["run"] else _BESIDE
    for metric in map(metric_of, metrics):
        every = {name: list(values(rows, metric.key)) for name, rows in runs.items()}
        every[FLOOR] = list(values(floor, f"floor_{metric.key}"))
        lanes = {name: cases for name, cases in every.items() if cases}
        if any(len(cases) >= 2 for name, cases in lanes.items() if name != FLOOR):
            totals = {**{name: len(rows) for name, rows in runs.items()}, FLOOR: len(floor)}
            plots.append({**_plot(metric, lanes, layout), "scored": _scored(metric, lanes, totals)})
    page = templates("diffux2ct.evaluation.report").get_template("plots.html")
    return Markup(page.render(plots=plots) if plots else "")


def _scored(metric: Metric, lanes: Lanes, totals: Mapping[str, int]) -> str:
    """The cases behind each lane, where some have no value, and of any matched error: "run 2 of 3, floor 3 of 3"."""
    if not metric.beside and all(len(cases) == totals[name] for name, cases in lanes.items()):
        return ""
    counts = ", ".join(f"{name} {len(cases)} of {totals[name]}" for name, cases in lanes.items())
    return f"{counts} cases" + (f"; read it with {metric_of(metric.beside).title}" if metric.beside else "")


def _plot(metric: Metric, lanes: Lanes, layout: _Layout) -> dict[str, Any]:
    everything = [value for lane in lanes.values() for _, value in lane]
    ticks = _ticks(min(everything), max(everything))
    low, high = min(ticks[0], *everything), max(ticks[-1], *everything)
    axis = layout.first + layout.pitch * (len(lanes) - 1) + 22

    def place(value: float) -> float:
        return round(layout.left + (value - low) / (high - low) * (_WIDTH - layout.left - _RIGHT), 1)

    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    most = max(_LEAST_DOTS, _MOST_DOTS // len(lanes))
    return {
        "title": metric.title,
        "unit": f", {metric.unit}" if metric.unit else "",
        "direction": metric.direction,
        "words": "; ".join(_in_words(name, cases, metric) for name, cases in lanes.items()),
        "width": _WIDTH,
        "height": f"{axis + 18:g}",
        "axis": axis,
        "ticks": [(place(tick), f"{tick:.{digits}f}") for tick in ticks],
        "lanes": [
            _lane(cases, layout.first + layout.pitch * index, place, metric, most) | _lane_name(name, index, layout)
            for index, (name, cases) in enumerate(lanes.items())
        ],
    }


def _lane_name(name: str, index: int, layout: _Layout) -> dict[str, Any]:
    middle, kind = layout.first + layout.pitch * index, "floor" if name == FLOOR else "run"
    if layout.name_above is None:
        place = {"name_x": layout.left - 8, "name_y": middle + 4, "name_kind": "lane"}
    else:
        place = {"name_x": layout.left, "name_y": middle - layout.name_above, "name_kind": "name"}
        name = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return {"kind": kind, "name": name, **place}


def _lane(
    cases: Sequence[tuple[str, float]], middle: float, place: Callable[[float], float], metric: Metric, most: int
) -> dict[str, Any]:
    numbers = np.array([value for _, value in cases])
    first, median, third = (place(float(q)) for q in np.quantile(numbers, (0.25, 0.5, 0.75)))
    step = max(1, math.ceil(len(cases) / most))
    ordered = sorted(cases, key=lambda case: case[1])
    drawn = ordered[:-1:step] + ordered[-1:]  # the extremes are always among them
    # The golden ratio spreads neighbours apart, the same way each time.
    dots = [
        (place(value), f"{middle + 14 * (k * 0.618034 % 1 - 0.5):.1f}", f"{case}: {metric.text(value)}")
        for k, (case, value) in enumerate(drawn)
    ]
    return {"middle": middle, "first": first, "median": median, "width": f"{max(third - first, 0.5):.1f}", "dots": dots}


def _in_words(name: str, cases: Sequence[tuple[str, float]], metric: Metric) -> str:
    numbers = [value for _, value in cases]
    least, most = metric.text(min(numbers)), metric.text(max(numbers))
    return f"{name} median {metric.text(float(np.median(numbers)))}, from {least} to {most}"


def _ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers that span ``low`` to ``high``."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * k for k in range(first, last + 1)]
