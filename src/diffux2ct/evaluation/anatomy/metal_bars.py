"""Straight bars of metal in a CT: shafts of screws and stretches of rods, also where they touch.

Metal is what exceeds a threshold well below the window's end, so that clipping at 1500 HU takes nothing away. Bars are
found one after the other as lines that run through metal without a gap (RANSAC, Fischler and Bolles 1981), the one
with most metal first; what belongs to it is taken out before the next is sought. Points are (x, y, z) mm from the
centre of voxel (0, 0, 0), axes LPS.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num
from scipy import ndimage

from diffux2ct.evaluation.anatomy.surfaces import Spacing, corner_of, points_of

METAL_HU = 1000.0
"""Below what blur by a voxel leaves of a rod's middle (1100 to 1250 HU of 1500); dense bone reaches it in places."""

CORE_HU = 1100.0  # median of a bar's voxels, at least
_MIN_SECTION = 14.0  # mm^2 of metal across a bar: thinner ones are edges of bone, or what is left beside another bar

RADIUS = 4.5  # mm: screws are 4.5 to 7.5 mm thick, rods 5.5, and partial volume thickens both
MIN_LENGTH = 12.0  # mm of a bar: between the heads of two screws little more may be left of a rod
_MIN_PIECE = 150.0  # mm^3 of connected metal; less is noise
_TRIES = 400  # pairs of points that are tried for each bar
_SAMPLE = 700  # points in which they are tried first
_CHECKED = 30  # of them, those with most metal, in which gaps are sought
_CROWDED = 0.5  # share of metal around a bar (RADIUS to twice that) from which on it is a part of something thick
_HEAD = 10.0  # mm that a screw's head may stand out of the bar that was found
_PARALLEL = 0.9  # cosine of the angle below which two bars side by side are one

Points = Float[np.ndarray, "_ 3"]


@dataclass(frozen=True, eq=False)
class Bar:
    """A straight piece of metal: its two ends and their direction, and the metal that it was fitted to; mm."""

    start: Float[np.ndarray, "3"]
    end: Float[np.ndarray, "3"]
    points: Points

    @property
    def length(self) -> float:
        """mm."""
        return float(np.linalg.norm(self.end - self.start))

    @property
    def axis(self) -> Float[np.ndarray, "3"]:
        """Unit vector from start to end."""
        return (self.end - self.start) / self.length

    def flipped(self) -> "Bar":
        """The same bar from its other end."""
        return Bar(self.end, self.start, self.points)


def metal_points(hu: Num[np.ndarray, "d h w"], spacing: Spacing, threshold: float | int = METAL_HU) -> Points:
    """Centres of the voxels of at least ``threshold`` HU, mm (x, y, z). spacing: (x, y, z) mm."""
    return points_of(hu >= threshold, spacing)


def find_bars(
    hu: Num[np.ndarray, "d h w"], spacing: Spacing, threshold: float | int = METAL_HU, seed: int = 0
) -> list[Bar]:
    """All bars of at least ``MIN_LENGTH`` mm, those with most metal first in each connected piece of metal.

    spacing: (x, y, z) mm. seed: of the lines that are tried; the same seed finds the same bars.
    """
    pieces, _ = ndimage.label(hu >= threshold, np.ones((3, 3, 3)))  # type: ignore[misc]
    volume = float(np.prod(spacing))
    bars: list[Bar] = []
    rng = np.random.default_rng(seed)
    for value, box in enumerate(ndimage.find_objects(pieces), start=1):
        mask = pieces[box] == value
        if mask.sum() * volume < _MIN_PIECE:
            continue
        found = _bars_of_piece(points_of(mask, spacing) + corner_of(box, spacing), spacing, rng)
        bars += [bar for bar in found if median_hu(bar, hu, spacing) >= CORE_HU]
    return bars


def distance_to_line(points: Points, start: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position along a line (mm from ``start``) and distance from it, of each point. axis: unit vector."""
    offset = points - start
    along = offset @ axis
    return along, np.sqrt(np.maximum((offset**2).sum(1) - along**2, 0.0))


def main_axis(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the points, and the unit vector along which they spread most."""
    centre = points.mean(0)
    return centre, np.linalg.svd(points - centre, full_matrices=False)[2][0]


def _bars_of_piece(points: Points, spacing: Spacing, rng: np.random.Generator) -> list[Bar]:
    step, volume = float(max(spacing)), float(np.prod(spacing))
    rest, bars = points, []
    while len(rest) * volume >= _MIN_PIECE:
        bar = _best_bar(rest, step, rng)
        if bar is None:
            break
        along, off = distance_to_line(rest, bar.start, bar.axis)
        taken = (off <= RADIUS + 0.5 * step) & (along > -step) & (along < bar.length + step)
        rest = rest[~taken]
        stout = len(bar.points) * volume >= _MIN_SECTION * bar.length
        free = _share_around(points, bar, spacing) < _CROWDED
        if stout and free and not any(_beside(bar, other) for other in bars):
            # Through what other bars took out before: the heads of screws along a rod.
            bars.append(_run(points, bar.start, bar.axis, bar.length / 2, step) or bar)
    return bars


def _beside(bar: Bar, other: Bar) -> bool:
    """True if a bar is a flake left over from another, stouter one: parallel to it and at its side."""
    along, off = distance_to_line((bar.start + bar.end)[None] / 2, other.start, other.axis)
    parallel = abs(float(bar.axis @ other.axis)) > _PARALLEL
    return bool(parallel and off[0] < 2 * RADIUS and -_HEAD < along[0] < other.length + _HEAD)


def _best_bar(points: Points, step: float, rng: np.random.Generator) -> Bar | None:
    """The bar with most metal among those through pairs of points; None if none is long enough."""
    pairs = rng.integers(len(points), size=(_TRIES, 2))
    starts, ends = points[pairs[:, 0]], points[pairs[:, 1]]
    lengths = np.linalg.norm(ends - starts, axis=1)
    keep = (lengths >= MIN_LENGTH) & (lengths <= 80.0)
    starts, lengths, ends = starts[keep], lengths[keep], ends[keep]
    if not len(starts):
        return None
    axes = (ends - starts) / lengths[:, None]
    some = points[:: -(-len(points) // _SAMPLE)]
    along = some @ axes.T - (starts * axes).sum(1)  # [point, line]
    squared = ((some**2).sum(1)[:, None] - 2 * some @ starts.T + (starts**2).sum(1)) - along**2
    near = (squared <= RADIUS**2) & (along >= 0) & (along <= lengths)
    best: Bar | None = None
    for k in np.argsort(-near.sum(0), kind="stable")[:_CHECKED]:
        bar = _run(points, starts[k], axes[k], lengths[k] / 2, step)
        if bar is not None and (best is None or len(bar.points) > len(best.points)):
            best = bar
    if best is None:
        return None
    for _ in range(3):
        centre, axis = main_axis(best.points)
        refined = _run(points, centre, axis, 0.0, step)
        if refined is None:
            break
        best = refined
    return best


def _run(points: Points, start: np.ndarray, axis: np.ndarray, through: float, step: float) -> Bar | None:
    """The stretch of metal along a line without a gap that holds the position ``through``; None if it is short."""
    along, off = distance_to_line(points, start, axis)
    # The core decides on gaps: its neighbours' edges may bridge one.
    core = np.floor((along[off <= max(0.5 * RADIUS, 0.75 * step)] - through) / step).astype(int)
    if not len(core):
        return None
    low = int(core.min())
    filled = np.bincount(core - low) > 0
    at = -low
    if not 0 <= at < len(filled) or not filled[at]:
        return None
    empty = np.flatnonzero(~filled)
    first = int(empty[empty < at].max(initial=-1)) + 1 + low
    last = int(empty[empty > at].min(initial=len(filled))) + low
    inside = (off <= RADIUS) & (along >= through + first * step) & (along < through + last * step)
    if not inside.any():
        return None
    ends = along[inside].min(), along[inside].max()
    if ends[1] - ends[0] < MIN_LENGTH:
        return None
    return Bar(start + ends[0] * axis, start + ends[1] * axis, points[inside])


def median_hu(bar: Bar, hu: np.ndarray, spacing: Spacing) -> float:
    """Median of HU over a bar's voxels."""
    x, y, z = np.rint(bar.points / np.asarray(spacing, dtype=np.float64)).astype(int).T
    return float(np.median(hu[z, y, x]))


def _share_around(points: Points, bar: Bar, spacing: Spacing) -> float:
    along, off = distance_to_line(points, bar.start, bar.axis)
    around = (off > RADIUS) & (off <= 2 * RADIUS) & (along >= 0) & (along <= bar.length)
    return float(around.sum() * np.prod(spacing) / (3 * np.pi * RADIUS**2 * bar.length))
