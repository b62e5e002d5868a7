"""Where a reconstruction puts pedicle screws and rods: how many it shows, and how far they are off.

The true implants come from the case's labels (each screw and rod has a value of its own) or, without labels, from the
metal of the true volume. Those of the reconstruction are sought in its metal alone, without the truth (``metal_bars``).
Both are then measured alike, in HU by the same code, so that a perfect reconstruction has no error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Num, UInt8
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from diffux2ct.data.labels import FIRST_ROD, FIRST_SCREW, structure_values
from diffux2ct.evaluation.anatomy.metal_bars import (
    RADIUS,
    Bar,
    Points,
    distance_to_line,
    find_bars,
    main_axis,
    median_hu,
    metal_points,
)
from diffux2ct.evaluation.anatomy.rod_lines import RodCover, RodLine, bars_as_rods, cover_rod, rod_line
from diffux2ct.evaluation.anatomy.surfaces import Spacing, points_of
from diffux2ct.evaluation.metric import Metric, computes

MAX_VOXEL_MM = 4.0
"""Coarser volumes are not measured: at 5 mm tips are 1.4 mm off in a perfect volume, and blur loses most screws."""

GATE_MM = 12.0
"""Farther off, a screw or rod is another one, or none: less than half the way to the next level or the other side."""

_GATE_COSINE = 0.7  # 45 degrees
_SHAFT, _SHAFT_MM = 0.6, 30.0  # share of a screw from the tip on, and mm, in which there is no head
_BONE_HU = 200.0  # spongy bone around a tip
# The median of metal's voxels in a true volume clipped at 1476 or 1500; dense bone has 1100-1400.
_SATURATED_HU = 1450.0
_MIN_SCREW = 15.0  # mm; shorter labelled screws are stumps
_NEAR = 5.0  # mm around dense voxels of the truth, in which nothing found counts as wrong

_share = partial(Metric, group="Implants", larger_is_better=True)
_error = partial(Metric, group="Implants", larger_is_better=False, beside="implant_recall")


@dataclass(frozen=True, eq=False)
class Implants:
    """Screws as bars from the tip on, and rods as centre lines; mm (x, y, z).

    dense: all voxels of at least 1000 HU: these implants, other metal, dense bone.
    unseen: labelled screws and rods that even the truth does not show, which are left out.
    """

    screws: list[Bar]
    rods: list[RodLine]
    dense: Points
    unseen: int = 0


@dataclass(frozen=True)
class ImplantScores:
    """Scores of one case; None where there is nothing to measure.

    recall: share of the true screws and rods that are found. precision: share of the found ones that are true. tip_mm,
    axis_deg: mean over matched screws of the distance of the tips and of the angle of the axes. rod_mm: mean distance
    of matched rods' centre lines. num_true, num_found: screws and rods. tips: mm, of each matched screw.
    """

    recall: float | None = None
    precision: float | None = None
    tip_mm: float | None = None
    axis_deg: float | None = None
    rod_mm: float | None = None
    num_true: int = 0
    num_found: int = 0
    tips: list[float] = field(default_factory=list)

    @computes(
        _share("implant_recall", "Implants found", about="share of true screws and rods that have a match"),
        _share("implant_precision", "Implants right", about="share of reconstructed screws and rods that have a match"),
        _error("implant_tip_mm", "Implant tip error", "mm", about="distance of matched tips"),
        _error("implant_axis_deg", "Implant axis error", "deg", about="angle between matched axes"),
        _error("implant_rod_mm", "Rod error", "mm", about="mean distance of matched rods' centre lines"),
    )
    def as_row(self) -> dict[str, float | None]:
        """By the keys of per_case.csv."""
        names = ("recall", "precision", "tip_mm", "axis_deg", "rod_mm")
        return {f"implant_{name}": getattr(self, name) for name in names}


def true_implants(
    hu: Num[np.ndarray, "d h w"], labels: UInt8[np.ndarray, "d h w"] | None, spacing: Spacing, seed: int = 0
) -> Implants:
    """Screws and rods of a true volume, as far as its own metal shows them.

    Left out are stumps (screws under 15 mm, rods under 30 mm, as at the volume's edge), prostheses and plates, and
    implants that even in the truth are not found; ``unseen`` counts these.

    labels: ``data/labels``; None: bars whose voxels mostly reach 1450 HU, which bone does not, are implants: stretches
    of rods within 45 degrees of the body's axis, screws elsewhere. spacing: (x, y, z) mm, ``MAX_VOXEL_MM`` at most, or
    there are no implants. seed: of the search for bars.
    """
    if max(spacing) > MAX_VOXEL_MM:
        return Implants([], [], np.zeros((0, 3)))
    metal, bars = metal_points(hu, spacing), find_bars(hu, spacing, seed=seed)
    if labels is None:
        sure = [bar for bar in bars if median_hu(bar, hu, spacing) >= _SATURATED_HU]
        rods, rest = bars_as_rods(sure, metal)
        anchors = np.concatenate([np.zeros((0, 3)), *(line.points for line in rods)])
        screws = [fit_screw(_tip_first(bar, anchors), hu, metal, spacing) for bar in rest]
        drawn = Implants(screws, rods, metal)
    else:
        drawn = _labelled(hu, labels, spacing, metal)
    # So that a perfect reconstruction scores 1, implants that the search misses in the truth are left out.
    seen = _compare(hu, metal, bars, drawn, spacing)
    screws = [true for _, true in seen.screws]
    rods = [cover.line for cover in seen.covers if cover.found]
    return Implants(screws, rods, metal, len(drawn.screws) + len(drawn.rods) - len(screws) - len(rods))


def _labelled(hu: np.ndarray, labels: np.ndarray, spacing: Spacing, metal: Points) -> Implants:
    """Screws and rods by their labels."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    pieces = {v: points_of(labels == v, spacing) for v in present if v in structure_values("implants")}
    lines = [rod_line(points, metal) for value, points in pieces.items() if value >= FIRST_ROD]
    rods = [line for line in lines if line is not None]
    holding = [points for value, points in pieces.items() if not FIRST_SCREW <= value < FIRST_ROD]
    anchors = np.concatenate([np.zeros((0, 3)), *holding])
    bars = [_bar_of(points) for value, points in pieces.items() if FIRST_SCREW <= value < FIRST_ROD]
    screws = [fit_screw(_tip_first(b, anchors), hu, metal, spacing) for b in bars if b is not None]
    return Implants(screws, rods, metal)


def implant_scores(
    prediction_hu: Num[np.ndarray, "d h w"], truth: Implants, spacing: Spacing, seed: int = 0
) -> ImplantScores:
    """Find the screws and rods of a reconstruction and compare them with the true ones (``true_implants``).

    A found bar is a true screw's where it lies within 45 degrees and 12 mm (mean of tip and middle) of it, each with
    one at most (Hungarian method). A true rod is found where bars run along at least half of it, within 12 mm. Of the
    other bars those are wrong that lie where the truth has nothing dense; the rest is neither right nor wrong:
    fragments of true implants, prostheses, dense bone.

    All None where the truth has neither screw nor rod. spacing: (x, y, z) mm. seed: of the search for bars.
    """
    num_true = len(truth.screws) + len(truth.rods)
    if not num_true:
        return ImplantScores()
    metal, bars = metal_points(prediction_hu, spacing), find_bars(prediction_hu, spacing, seed=seed)
    seen = _compare(prediction_hu, metal, bars, truth, spacing)
    right = len(seen.screws) + sum(cover.found for cover in seen.covers)
    tips = [float(np.linalg.norm(found.start - true.start)) for found, true in seen.screws]
    angles = [_angle(found, true) for found, true in seen.screws]
    rods = [cover.distance for cover in seen.covers if cover.found and cover.distance is not None]
    num_found = right + len(seen.wrong)
    errors = [float(np.mean(values)) if values else None for values in (tips, angles, rods)]
    precision = right / num_found if num_found else None
    return ImplantScores(right / num_true, precision, *errors, num_true, num_found, tips)  # type: ignore[call-arg]


@dataclass(frozen=True)
class _Seen:
    """True implants in a volume: (found, true) screws, rods with the bars that cover them, and bars that are wrong."""

    screws: list[tuple[Bar, Bar]]
    covers: list[RodCover]
    wrong: list[Bar]


def _compare(hu: np.ndarray, metal: Points, bars: list[Bar], truth: Implants, spacing: Spacing) -> _Seen:
    def fitted(bar: Bar) -> Bar:
        return fit_screw(bar, hu, metal, spacing)

    pairs = _match([(fitted(bar), fitted(bar.flipped())) for bar in bars], truth.screws)
    rest = [bar for k, bar in enumerate(bars) if k not in {k for k, _, _ in pairs}]
    covers = [cover_rod(line, rest, metal, GATE_MM) for line in truth.rods]
    used = {k for cover in covers for k in cover.bars}
    wrong = [bar for k, bar in enumerate(rest) if k not in used and not _on(bar, truth.dense)]
    return _Seen([(found, true) for _, found, true in pairs], covers, wrong)


def fit_screw(bar: Bar, hu: Num[np.ndarray, "d h w"], metal: Points, spacing: Spacing) -> Bar:
    """The bar with its axis fitted to the metal of its first 30 mm, and its tip (start) at half the metal's height.

    bar: from the tip on. metal: ``metal_points`` of the volume. The head is left out: 40 % of the length, at least.
    """
    step = float(max(spacing))
    for _ in range(5):
        along, off = distance_to_line(metal, bar.start, bar.axis)
        shaft = (off <= RADIUS) & (along >= -step) & (along <= min(_SHAFT_MM, _SHAFT * bar.length))
        if shaft.sum() < 4:
            return bar
        centre, axis = main_axis(metal[shaft])
        axis = axis if axis @ bar.axis > 0 else -axis
        ends = [float((end - centre) @ axis) for end in (bar.start, bar.end)]
        tip = _tip(hu, spacing, centre, axis, ends[0])
        bar = Bar(centre + tip * axis, centre + ends[1] * axis, bar.points)
    return bar


def _tip(hu: np.ndarray, spacing: Spacing, centre: np.ndarray, axis: np.ndarray, about: float) -> float:
    """Where on the axis, from ``centre`` past ``about`` (mm, negative), HU fall half way from the shaft's to bone's.

    Half the height, as widths are measured in blurred images: a fixed threshold would shorten a blurred screw.
    """
    t = np.arange(0.0, about - 4 * max(spacing), -0.25)
    across = np.linalg.svd(axis[None])[2][1:]
    ring = np.concatenate([np.zeros((1, 3)), across, -across])  # 1 mm off the axis: noise averages out
    points = (centre + t[:, None] * axis)[:, None] + ring
    index = (points / np.asarray(spacing, dtype=np.float64))[..., ::-1]
    values = ndimage.map_coordinates(hu, np.moveaxis(index, -1, 0), np.float64, order=1, mode="nearest")
    profile = values.mean(1)
    level = (float(np.median(profile[t >= 0.6 * about])) + _BONE_HU) / 2
    below = np.flatnonzero(profile < level)
    if not len(below) or below[0] == 0:
        return about
    k = int(below[0])
    share = (profile[k - 1] - level) / (profile[k - 1] - profile[k])
    return float(t[k - 1] - 0.25 * share)


def _match(found: Sequence[tuple[Bar, Bar]], true: Sequence[Bar]) -> list[tuple[int, Bar, Bar]]:
    """(which, found, true) of screws that belong together; found: each bar fitted from either of its ends."""
    if not found or not true:
        return []

    def along(k: int, screw: Bar) -> Bar:
        return found[k][0] if found[k][0].axis @ screw.axis > 0 else found[k][1]

    cost = np.full((len(found), len(true)), 1e6)
    for k in range(len(found)):
        for j, screw in enumerate(true):
            bar = along(k, screw)
            if bar.axis @ screw.axis >= _GATE_COSINE:
                middle = [b.start + 0.5 * screw.length * b.axis for b in (bar, screw)]
                off = np.linalg.norm(bar.start - screw.start) + np.linalg.norm(middle[0] - middle[1])
                cost[k, j] = off / 2 if off / 2 <= GATE_MM else 1e6
    pairs = zip(*linear_sum_assignment(cost), strict=True)
    return [(int(k), along(int(k), true[j]), true[j]) for k, j in pairs if cost[k, j] < 1e6]


def _bar_of(points: Points) -> Bar | None:
    """A labelled screw as a bar along its main axis; None for a stump."""
    centre, axis = main_axis(points)
    along = (points - centre) @ axis
    if np.ptp(along) < _MIN_SCREW:
        return None
    return Bar(centre + along.min() * axis, centre + along.max() * axis, points)


def _tip_first(bar: Bar, anchors: Points) -> Bar:
    """The bar from the end farther from rods and plates, or, where there are none near, from the anterior end."""
    near = KDTree(anchors).query([bar.start, bar.end])[0] if len(anchors) else np.full(2, np.inf)
    if near.min() > 25.0:
        return bar if bar.start[1] <= bar.end[1] else bar.flipped()
    return bar if near[0] >= near[1] else bar.flipped()


def _on(bar: Bar, dense: Points) -> bool:
    """True if half of a bar's metal lies where the truth is dense."""
    return bool(len(dense)) and bool((KDTree(dense).query(bar.points)[0] <= _NEAR).mean() >= 0.5)


def _angle(a: Bar, b: Bar) -> float:
    """Degrees between two bars."""
    return float(np.degrees(np.arccos(np.clip(a.axis @ b.axis, -1.0, 1.0))))
