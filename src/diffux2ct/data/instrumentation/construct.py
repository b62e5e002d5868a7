"""The rods: which of the good screws are used together, and the curve of the rod through their heads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from diffux2ct.data.instrumentation.frame import Field, Points, unit
from diffux2ct.data.instrumentation.trajectory import HEAD_RADIUS, HEAD_REACH, Screw

_TRIES = 400  # combinations of good screws that are compared
_SHORTLIST = 12  # of them, those with the smoothest rods; the one that touches least bone is taken
_OVERHANG = (2.0, 6.0)  # mm of rod beyond its last heads
_ROD_STEP = 0.25  # mm between the points of a rod's axis


@dataclass(frozen=True)
class Rod:
    """One rod in LPS mm: its axis as points ``_ROD_STEP`` apart, cranial to caudal."""

    side: int
    axis: Points
    diameter: float

    def tangent_at(self, point: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """Unit direction of the rod where it is nearest to a point."""
        near = int(((self.axis - point) ** 2).sum(-1).argmin())
        near = min(max(near, 1), len(self.axis) - 2)
        return unit(self.axis[near + 1] - self.axis[near - 1])

    @property
    def length(self) -> float:
        """mm along the curve."""
        return float(np.sqrt((np.diff(self.axis, axis=0) ** 2).sum(-1)).sum())


def build_side(
    choices: Sequence[Sequence[Screw]], labels: Field, diameter: float | int, rng: np.random.Generator
) -> tuple[list[Screw], Rod]:
    """One screw out of each of ``choices`` (cranial to caudal, two at least), and the rod that joins them.

    Of combinations drawn with ``rng``, takes one that needs little bending and keeps out of the bone between.
    labels: uint8 in LPS mm.
    """
    draws = np.stack([rng.integers(len(good), size=_TRIES) for good in choices], -1)
    overhang = rng.uniform(*_OVERHANG, size=2)
    heads = np.stack([np.stack([screw.head for screw in good])[draws[:, i]] for i, good in enumerate(choices)], 1)
    order = np.argsort(_bending(heads), kind="stable")[:_SHORTLIST]
    sides = []
    for draw in draws[order]:
        screws = _lined_up([good[i] for good, i in zip(choices, draw, strict=True)])
        rod = _rod(screws, float(diameter), overhang)
        sides.append((float((labels.at(rod.axis[::8], 0, order=0) > 0).mean()), screws, rod))
    _, screws, rod = min(sides, key=lambda side: side[0])  # the first of those that touch least bone
    return screws, rod


def _bending(heads: Float[np.ndarray, "k n 3"]) -> Float[np.ndarray, "k"]:
    """Sum of squared curvatures at the inner heads."""
    legs = np.diff(heads, axis=1)
    length = np.sqrt((legs**2).sum(-1, keepdims=True))
    turn = np.diff(legs / length, axis=1) / (0.5 * (length[:, 1:] + length[:, :-1]))
    return (turn**2).sum((1, 2))


def _lined_up(screws: list[Screw]) -> list[Screw]:
    """Deep heads raised along their screws towards a common bow, within the reach of polyaxial heads."""
    if len(screws) < 3:
        return screws
    _, y, z = np.stack([screw.head for screw in screws]).T
    bow = np.polynomial.Polynomial.fit(z, y, 2 if len(screws) > 3 else 1)(z)
    lined = []
    for screw, target in zip(screws, bow, strict=True):
        reach = float(np.sqrt(((screw.head - screw.entry) ** 2).sum()))
        raised = reach + max(float(target - screw.head[1]), 0.0) / max(float(screw.axis[1]), 0.5)
        raised = max(reach, min(raised, HEAD_REACH[1]))
        lined.append(replace(screw, head=screw.entry + raised * screw.axis))
    return lined


def _rod(screws: Sequence[Screw], diameter: float, overhang: Float[np.ndarray, "2"]) -> Rod:
    heads = np.stack([screw.head for screw in screws])
    at = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(heads, axis=0) ** 2).sum(-1)))])
    count = max(2, int(np.ceil(at[-1] / _ROD_STEP)) + 1)
    if len(heads) == 2:
        inner = heads[0] + np.linspace(0, 1, count)[:, None] * (heads[1] - heads[0])
    else:
        inner = CubicSpline(at, heads, bc_type="natural")(np.linspace(0, at[-1], count))
    start, end = unit(inner[0] - inner[1]), unit(inner[-1] - inner[-2])
    top, bottom = (np.arange(_ROD_STEP, HEAD_RADIUS + over, _ROD_STEP)[:, None] for over in overhang)
    axis = np.concatenate([(inner[0] + top * start)[::-1], inner, inner[-1] + bottom * end])
    return Rod(screws[0].side, axis, diameter)
