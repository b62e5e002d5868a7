"""Distributions as small inline SVG: every case a dot, a box over the middle half, the floor in a lane below."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from diffux2ct.evaluation.report_metrics import Shown, shown, values

_WIDTH, _LEFT, _RIGHT = 340, 46, 12
_LANES = (("run", 30.0), ("floor", 62.0))  # name and middle of a lane, pixels from the top
_AXIS = 84.0
_MOST_DOTS = 150  # of a lane; more would overlap and make the page heavy


def distributions(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """A plot per metric that at least two cases have; empty where there is none."""
    plots = []
    for metric in map(shown, metrics):
        lanes = {"run": list(values(rows, metric.key)), "floor": list(values(rows, f"floor_{metric.key}"))}
        if len(lanes["run"]) >= 2:
            plots.append(_plot(metric, lanes))
    return f"<div class=plots>{''.join(plots)}</div>" if plots else ""


def _plot(metric: Shown, lanes: Mapping[str, list[tuple[str, float]]]) -> str:
    everything = [value for lane in lanes.values() for _, value in lane]
    ticks = _ticks(min(everything), max(everything))
    low, high = min(ticks[0], *everything), max(ticks[-1], *everything)

    def place(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    parts = [
        f"<path d='M{place(tick)} 12V{_AXIS}' class=rule /><text x={place(tick)} y={_AXIS + 14} class=tick>"
        f"{tick:.{digits}f}</text>"
        for tick in ticks
    ]
    parts += [_lane(name, middle, lanes[name], place, metric) for name, middle in _LANES if lanes[name]]
    told = "; ".join(_in_words(name, lanes[name], metric) for name, _ in _LANES if lanes[name])
    unit = f", {metric.unit}" if metric.unit else ""
    return (
        f"<figure class=plot><figcaption><b>{escape(metric.title)}</b>{escape(unit)} "
        f"<small>{metric.direction}</small></figcaption>"
        f"<svg viewBox='0 0 {_WIDTH} 102' role=img aria-label='{escape(metric.title)}: {escape(told)}'>"
        f"{''.join(parts)}</svg></figure>"
    )


def _lane(name: str, middle: float, cases: Sequence[tuple[str, float]], place: Any, metric: Shown) -> str:
    numbers = np.array([value for _, value in cases])
    first, median, third = (place(float(q)) for q in np.quantile(numbers, (0.25, 0.5, 0.75)))
    box = f"<rect x={first} y={middle - 9} width={max(third - first, 0.5):.1f} height=18 class=box />"
    line = f"<path d='M{median} {middle - 11}V{middle + 11}' class=median />"
    step = max(1, math.ceil(len(cases) / _MOST_DOTS))
    ordered = sorted(cases, key=lambda case: case[1])
    drawn = ordered[:-1:step] + ordered[-1:]  # the extremes are always among them
    # The golden ratio spreads neighbours apart, the same way each time.
    dots = "".join(
        f"<circle cx={place(value)} cy={middle + 14 * (k * 0.618034 % 1 - 0.5):.1f} r=2.6>"
        f"<title>{escape(case)}: {escape(metric.text(value))}</title></circle>"
        for k, (case, value) in enumerate(drawn)
    )
    return f"<g class={name}><text x={_LEFT - 8} y={middle + 4} class=lane>{name}</text>{box}{dots}{line}</g>"


def _in_words(name: str, cases: Sequence[tuple[str, float]], metric: Shown) -> str:
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
