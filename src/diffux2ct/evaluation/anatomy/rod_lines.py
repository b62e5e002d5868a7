"""Centre lines of spinal rods in metal, and how well bars found in another volume follow them. Points: (x, y, z) mm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffux2ct.evaluation.anatomy.metal_bars import RADIUS, Bar, Points, distance_to_line, main_axis

MIN_ROD = 30.0  # mm: a rod joins two vertebrae at least
_STEP = 2.0  # mm between the points of a centre line
_SLACK = 4.0  # mm past a bar's ends in which it still counts as running along a rod
_ALONG = 0.8  # cosine of the largest angle between a rod and a bar that is a stretch of it
_JOINT = 15.0  # mm between the ends of two stretches of one rod: a screw's head hides the rod between them
_COVERED = 0.5  # share of a rod that must be found


@dataclass(frozen=True, eq=False)
class RodLine:
    """A rod: points of its centre line, 2 mm apart, and its direction at each."""

    points: Float[np.ndarray, "n 3"]
    tangents: Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class RodCover:
    """A rod as bars follow it: found or not, mean distance in mm (None if none follows it), indices of the bars.

    line: the stretches that bars follow, where the metal has its centre.
    """

    found: bool
    distance: float | None
    bars: frozenset[int]
    line: RodLine


def rod_line(points: Points, metal: Points) -> RodLine | None:
    """The centre line of a rod's voxels, centred in the metal around it; None for a stump under 30 mm."""
    centre, axis = main_axis(points)
    along = (points - centre) @ axis
    if np.ptp(along) < MIN_ROD:
        return None
    bins = np.floor((along - along.min()) / (2 * _STEP)).astype(int)
    filled = np.unique(bins)
    knots = np.stack([points[bins == k].mean(0) for k in filled])
    return _resampled(knots, along, centre, axis, metal)


def bars_as_rods(bars: Sequence[Bar], metal: Points) -> tuple[list[RodLine], list[Bar]]:
    """Bars within 45 degrees of the body's axis chained to rods, and the other bars."""
    upright = [bar for bar in bars if abs(bar.axis[2]) > np.sqrt(0.5)]
    chains: list[list[Bar]] = []
    for bar in sorted(upright, key=lambda bar: bar.start[2] + bar.end[2]):
        mine = [chain for chain in chains if any(_joined(bar, other) for other in chain)]
        chains = [chain for chain in chains if chain not in mine] + [[bar, *(b for c in mine for b in c)]]
    lines = [rod_line(np.concatenate([bar.points for bar in chain]), metal) for chain in chains]
    return [line for line in lines if line is not None], [b for b in bars if b not in upright]


def cover_rod(line: RodLine, bars: Sequence[Bar], metal: Points, gate: float) -> RodCover:
    """The bars along a true rod, and the mean distance of their centre line in ``metal`` from it.

    gate: mm, the farthest that a bar counts.
    """
    used, places, there = set(), [], []
    for place, (point, tangent) in enumerate(zip(line.points, line.tangents, strict=True)):
        at = {k: c for k, bar in enumerate(bars) if (c := _crossing(bar, point, tangent)) is not None}
        near = {k: float(np.linalg.norm(c - point)) for k, c in at.items()}
        best = min(near, key=near.__getitem__, default=None)
        if best is not None and near[best] <= gate:
            used.add(best)
            places.append(place)
            there.append(at[best])
    tangents = line.tangents[places]
    centred = _centred(np.array(there).reshape(-1, 3), tangents, metal)
    off = np.linalg.norm(centred - line.points[places], axis=1)
    found = len(places) >= _COVERED * len(line.points)
    return RodCover(found, float(off.mean()) if len(off) else None, frozenset(used), RodLine(centred, tangents))


def _crossing(bar: Bar, point: np.ndarray, tangent: np.ndarray) -> np.ndarray | None:
    """Where a bar passes through the plane across a rod at a point; None if it ends before, or runs elsewhere."""
    slope = float(bar.axis @ tangent)
    if abs(slope) < _ALONG:
        return None
    t = float((point - bar.start) @ tangent) / slope
    return bar.start + t * bar.axis if -_SLACK <= t <= bar.length + _SLACK else None


def _joined(a: Bar, b: Bar) -> bool:
    gap = min(np.linalg.norm(p - q) for p in (a.start, a.end) for q in (b.start, b.end))
    return bool(gap <= _JOINT and abs(a.axis @ b.axis) > np.sqrt(0.5))


def _resampled(knots: np.ndarray, along: np.ndarray, centre: np.ndarray, axis: np.ndarray, metal: Points) -> RodLine:
    """Knots to points a step apart along the main axis, centred in the metal, with smooth tangents."""
    at = (knots - centre) @ axis
    t = np.arange(along.min() + _STEP / 2, along.max(), _STEP)
    points = np.stack([np.interp(t, at, knots[:, i]) for i in range(3)], 1)
    points += (t - (points - centre) @ axis)[:, None] * axis  # past the last knots, straight on
    tangents = _tangents(points)
    return RodLine(_centred(points, tangents, metal), tangents)


def _tangents(points: Points) -> np.ndarray:
    reach = 5  # points either way: voxels' steps shall not turn them
    index = np.arange(len(points))
    ends = points[np.minimum(index + reach, len(points) - 1)] - points[np.maximum(index - reach, 0)]
    return ends / np.linalg.norm(ends, axis=1, keepdims=True)


def _centred(points: Points, tangents: np.ndarray, metal: Points) -> np.ndarray:
    """Points moved, across the rod, to the middle of the metal around them."""
    points = points.copy()
    for _ in range(3):
        for k, tangent in enumerate(tangents):
            along, off = distance_to_line(metal, points[k], tangent)
            near = metal[(np.abs(along) <= 2 * _STEP) & (off <= RADIUS)]
            if len(near):
                move = near.mean(0) - points[k]
                points[k] += move - (move @ tangent) * tangent
    return points
