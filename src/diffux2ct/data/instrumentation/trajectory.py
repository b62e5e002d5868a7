"""Trajectories of pedicle screws: straight lines through the isthmus, rated by the bone around them.

As in computer-assisted planning of pedicle screws: sample lines through the pedicle, keep those whose screw stays in
bone, prefer a wide margin and the usual angles. Several good lines are kept for the seed and the rods to choose from.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffux2ct.data.instrumentation.frame import Frame, Points
from diffux2ct.data.instrumentation.settings import InstrumentSettings
from diffux2ct.data.instrumentation.vertebra import Pedicle, Vertebra

FRONT_MARGIN = 5.0  # mm of bone that stay in front of the tip
HEAD_RADIUS = 6.5  # mm, of the tulip
HEAD_REACH = (9.0, 14.0)  # mm from the entry to the rod's axis: nearest and farthest
TULIP_FOOT = 6.0  # mm from the rod's axis towards the bone
TULIP_TOP = 8.0  # mm from the rod's axis away from it
_STEP = 0.5  # mm, along a line
_PEDICLE_SHARE = 0.85  # of the isthmus that a screw may fill
_CANAL_MARGIN = 1.0  # mm between screw and canal
_MIDLINE_MARGIN = 1.5  # mm between a tip and the midline, beyond which lies the other side's screw
_NEAR_ENTRY = 6.0  # mm below the entry within which the cortex, cut obliquely, need not surround the screw
# Convergence towards the midline, degrees, that surgeons use (Zindrick 1987: 11 at L1 to 30 at L5), cranial to caudal.
_CONVERGENCE = {20: 10.0, 21: 11.0, 22: 13.0, 23: 16.0, 24: 21.0}
_SPREAD = 10.0  # degrees from that angle that cost as much as one mm of margin
_KEEP = 1.2  # rating below the best at which a line is still good


@dataclass(frozen=True)
class Screw:
    """One screw in LPS mm: shaft from ``entry`` (bone's surface) to ``tip``; the rod's axis passes through ``head``.

    margin: mm of bone around the shaft where it is least. canal_gap: mm to the spinal canal.
    """

    vertebra: int
    side: int
    entry: Float[np.ndarray, "3"]
    tip: Float[np.ndarray, "3"]
    head: Float[np.ndarray, "3"]
    diameter: float
    margin: float
    canal_gap: float

    @property
    def axis(self) -> Float[np.ndarray, "3"]:
        """Unit vector from the tip to the head."""
        return (self.entry - self.tip) / self.length

    @property
    def length(self) -> float:
        """Entry to tip, mm."""
        return float(np.sqrt(((self.entry - self.tip) ** 2).sum()))


def plan_screws(vertebra: Vertebra, pedicle: Pedicle, settings: InstrumentSettings) -> list[Screw]:
    """Good screws for one pedicle, best first; none where it is too narrow or the body too short for any."""
    starts, directions, penalty = _lines(vertebra, pedicle)
    t = np.arange(-45.0, settings.length[1] + 15.0, _STEP)
    depth = vertebra.depth.at(starts[:, None] + t[:, None] * directions[:, None], -20.0)
    zero = int(np.argmin(np.abs(t)))
    out = depth <= 0
    entry = t[np.where(out[:, :zero].any(1), zero - 1 - out[:, zero - 1 :: -1].argmax(1), 0)]
    leave = t[np.where(out[:, zero:].any(1), zero + out[:, zero:].argmax(1), zero)]
    length = np.minimum(np.floor((leave - FRONT_MARGIN - entry) / 5.0) * 5.0, settings.length[1])
    within = (t >= entry[:, None] + _NEAR_ENTRY) & (t <= (entry + length)[:, None])
    margin = np.where(within, depth, np.inf).min(1)
    # In steps of half a millimetre, as screws are manufactured.
    diameter = np.clip(np.floor(_PEDICLE_SHARE * 2 * margin * 2) / 2, *settings.diameter)
    possible = (length >= settings.length[0]) & (2 * margin >= settings.diameter[0] + 0.5)
    rating = np.minimum(margin, 4.5) + 0.02 * length - penalty
    screws, best = [], 0.0
    for i in sorted(np.flatnonzero(possible), key=lambda i: (-rating[i], i))[:400]:
        line = starts[i], directions[i], entry[i]
        screw = _screw(vertebra, pedicle.side, line, length[i], float(diameter[i]), float(margin[i]))
        if screw is None:
            continue
        best = rating[i] if not screws else best
        if rating[i] < best - _KEEP or len(screws) == 40:
            break
        screws.append(screw)
    return screws


def shaft_points(screw: Screw) -> Points:
    """Points (x, y, z) LPS mm that fill the shaft about evenly, to measure its share in a label."""
    frame = screw_frame(screw.tip, screw.axis)
    t = np.arange(0.25, screw.length, 0.5)
    points, radius = [np.array([0.0, 0.0, 1.0]) * t[:, None]], screw.diameter / 2
    # Rings of twelve points each.
    for share in (0.35, 0.6, 0.8, 0.97):
        for angle in np.arange(12) * (2 * np.pi / 12):
            ring = np.array([np.cos(angle), np.sin(angle), 0.0]) * radius * share
            points.append(points[0] + ring)
    return frame.to_world(np.concatenate(points))


def screw_frame(origin: Float[np.ndarray, "3"], axis: Float[np.ndarray, "3"]) -> Frame:
    """A frame whose z runs along ``axis``; x and y are any two unit vectors across."""
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    x = np.cross(helper, axis)
    x = x / np.sqrt((x * x).sum())
    return Frame(origin, np.stack([x, np.cross(axis, x), axis]))


def _lines(vertebra: Vertebra, pedicle: Pedicle) -> tuple[Points, Points, Float[np.ndarray, "n"]]:
    """Starts and directions [n, 3] of the lines in the vertebra's frame, and the cost of unusual angles, mm."""
    shifts = np.arange(-4.0, 4.1, 1.0), np.arange(-6.0, 6.1, 1.5)
    angles = np.arange(0.0, 37.0, 3.0), np.arange(-16.0, 16.1, 4.0)
    grids = np.meshgrid(*shifts, *angles, indexing="ij")
    dx, dz, inward, upward = (grid.ravel() for grid in grids)
    start = pedicle.centre + np.stack([dx, np.zeros_like(dx), dz], -1)
    a, b = np.radians(inward), np.radians(upward)
    direction = np.stack([-pedicle.side * np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b), np.sin(b)], -1)
    penalty = ((inward - _CONVERGENCE.get(vertebra.value, 15.0)) / _SPREAD) ** 2 + (upward / _SPREAD) ** 2
    inside = vertebra.depth.at(start, -20.0) >= 1.5
    return start[inside], direction[inside], penalty[inside]


def _screw(vertebra: Vertebra, side: int, line: tuple, length: float, diameter: float, margin: float) -> Screw | None:
    """The screw on a line, or None if it nears the canal or the midline or if its head would sit in bone.

    line: start and direction [3] in the vertebra's frame, and mm from the start to the entry.
    """
    start, direction, entry_at = line
    entry, tip = start + entry_at * direction, start + (entry_at + length) * direction
    shaft = entry + np.arange(-10.0, length, 1.0)[:, None] * direction
    canal_gap = float(vertebra.canal_gap.at(shaft, 20.0).min() - diameter / 2)
    if canal_gap < _CANAL_MARGIN or tip[0] * side < diameter / 2 + _MIDLINE_MARGIN:
        return None
    reach = _head_reach(vertebra, entry, -direction)
    if reach is None:
        return None
    to_world = vertebra.frame.to_world
    entry, tip, head = to_world(entry), to_world(tip), to_world(entry - reach * direction)
    return Screw(vertebra.value, side, entry, tip, head, diameter, margin, canal_gap)


def _head_reach(vertebra: Vertebra, entry: np.ndarray, outward: np.ndarray) -> float | None:
    """mm from the entry outwards to the rod's axis, so that the tulip clears the bone; None beyond its reach."""
    frame = screw_frame(entry, outward)
    angles = np.arange(8) * (np.pi / 4)
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(8)], -1) * (HEAD_RADIUS - 1.0)
    for reach in np.arange(HEAD_REACH[0], HEAD_REACH[1] + 0.1, 1.0):
        heights = np.arange(reach - TULIP_FOOT + 1.0, reach + TULIP_TOP, 3.0)
        points = frame.to_world(ring + heights[:, None, None] * np.array([0.0, 0.0, 1.0]))
        own = vertebra.depth.at(points, -20.0) > 1.0
        other = vertebra.others.at(points, 0.0, order=0) > 0.5
        # The facet may be trimmed a little, as surgeons do.
        if (own | other).mean() <= 0.12:
            return float(reach)
    return None
