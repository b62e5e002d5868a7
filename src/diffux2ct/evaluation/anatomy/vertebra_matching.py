"""Heights and spacing of vertebrae in a reconstruction without a segmentation of it: the true end plates, found again.

The true labels say where each end plate is. The density around it, in a short cylinder along the vertebra's axis, is
then looked for in the reconstruction by sliding along that axis: the best normalised cross-correlation says how far
the plate has moved (digital volume correlation, Bay et al., Exp Mech 39 (1999) 217, in one dimension). Moves across
the axis are not seen. Where nothing correlates there is no plate and no error; ``share`` is that of vertebrae found.

Neighbouring vertebrae look alike: a spine that lies a whole level off would be matched level by level with the wrong
vertebrae. So the whole column is slid along its length first, and where it fits better farther off than each body
does within ``REACH_MM``, nothing is found. A single vertebra in a neighbour's place is not recognised as such.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Num
from scipy import ndimage

from diffux2ct.evaluation.anatomy.surfaces import Spacing
from diffux2ct.evaluation.anatomy.vertebrae import RADIUS, VertebralBody, perpendicular

REACH_MM = 8.0
"""Farthest move that is looked for: half-way to the next plate that looks alike would be 10 mm or more."""

MIN_CORRELATION = 0.6
"""Of the best fit, at least; less is another structure."""

_WINDOW = 6.0  # mm on either side of a plate that are compared
_STEP = 0.5  # mm, of the search
_COLUMN_MM = 48.0  # farthest that the whole column is slid: more than a lumbar level
_COLUMN_STEP = 2.0  # mm
_MARGIN = 0.05  # of mean correlation: less may be chance, for neighbours may be as good as equal


def match_bodies(
    prediction_hu: Num[np.ndarray, "d h w"],
    truth_hu: Num[np.ndarray, "d h w"],
    truth: Mapping[int, VertebralBody],
    spacing: Spacing,
) -> dict[int, VertebralBody]:
    """The true bodies as the reconstruction shows them, for ``vertebra_errors``; without those not found.

    truth: ``measure_bodies`` of the true labels. spacing: (x, y, z) mm. Both end plates must be found, within
    ``REACH_MM``. Where the column as a whole lies farther off, none is found.
    """
    found = {}
    if truth and level_evidence(prediction_hu, truth_hu, truth, spacing) > _MARGIN:
        return found
    for value, body in truth.items():
        plates = (body.centre + 0.5 * side * body.height * body.axis for side in (1, -1))
        upper, lower = (_move(prediction_hu, truth_hu, plate, body.axis, spacing) for plate in plates)
        if upper is not None and lower is not None:
            centre = body.centre + 0.5 * (upper + lower) * body.axis
            found[value] = replace(body, centre=centre, height=body.height + upper - lower)
    return found


def level_evidence(
    prediction_hu: Num[np.ndarray, "d h w"],
    truth_hu: Num[np.ndarray, "d h w"],
    truth: Mapping[int, VertebralBody],
    spacing: Spacing,
) -> float:
    """By how much the bodies fit better (mean correlation) slid together along the spine than each within reach.

    Positive: another level is in each one's place. Both means are over the bodies that the slide leaves in the volume,
    half of them at least, so that none is counted on one side alone. Slides of up to 48 mm.
    """
    ordered = [truth[value].centre for value in sorted(truth)]
    chord = ordered[0] - ordered[-1]
    up = chord / np.linalg.norm(chord) if len(ordered) > 1 else next(iter(truth.values())).axis
    moves = np.arange(-_COLUMN_MM, _COLUMN_MM + 1e-6, _COLUMN_STEP)
    within = np.abs(moves) <= REACH_MM
    fits = np.full((len(truth), len(moves)), np.nan)
    for row, body in zip(fits, truth.values(), strict=True):
        half = 0.5 * body.height + _WINDOW
        wanted = _cylinder(truth_hu, body.centre, body.axis, half, spacing)
        for k, move in enumerate(moves):
            # Near a body counts even where its window sticks out, as it does in the search for its plates.
            beyond = None if within[k] else np.nan
            there = _cylinder(prediction_hu, body.centre + move * up, body.axis, half, spacing, beyond)
            if not np.isnan(there).any():
                row[k] = _correlation(wanted, there[:, None])[0]
    near = fits[:, within].max(1)
    gains = [
        float((fits[inside, k] - near[inside]).mean())
        for k, inside in enumerate(np.isfinite(fits).T)
        if 2 * inside.sum() >= len(truth)
    ]
    return max(gains, default=0.0)


def _correlation(wanted: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation of [column, along] with each of [column, shift, along]; 0 where one is constant."""
    a = wanted - wanted.mean()
    b = windows - windows.mean((0, 2), keepdims=True)
    norm = np.sqrt(np.square(a).sum() * np.square(b).sum((0, 2)))
    return np.einsum("cl,csl->s", a, b) / np.maximum(norm, 1e-9)


def _move(
    prediction: np.ndarray, truth: np.ndarray, plate: np.ndarray, axis: np.ndarray, spacing: Spacing
) -> float | None:
    """Displacement of a plate along the axis, mm; None if it is not found within reach."""
    wanted = _cylinder(truth, plate, axis, _WINDOW, spacing)
    there = _cylinder(prediction, plate, axis, _WINDOW + REACH_MM, spacing)
    length = wanted.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(there, length, axis=1)  # [column, shift, along]
    correlation = _correlation(wanted, windows)
    best = int(correlation.argmax())
    # At the end of the search the true maximum may lie beyond.
    if correlation[best] < MIN_CORRELATION or best in (0, len(correlation) - 1):
        return None
    left, middle, right = correlation[best - 1 : best + 2]
    bend = left - 2 * middle + right
    part = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float((best + part) * _STEP - REACH_MM)


def _cylinder(
    hu: np.ndarray, centre: np.ndarray, axis: np.ndarray, half: float, spacing: Spacing, beyond: float | None = None
) -> np.ndarray:
    """HU [column, along] in a cylinder of ``RADIUS`` around an axis, from -half to half mm.

    beyond: the value outside of the volume; None: that of the nearest voxel.
    """
    basis = perpendicular(axis)
    grid = np.arange(-RADIUS, RADIUS + 1e-6, 2.0)
    u, v = (side.ravel() for side in np.meshgrid(grid, grid))
    inside = u**2 + v**2 <= RADIUS**2 + 1e-6
    across = u[inside, None] * basis[0] + v[inside, None] * basis[1]
    along = np.arange(-round(half / _STEP), round(half / _STEP) + 1) * _STEP
    points = centre + across[:, None] + along[:, None] * axis
    index = np.moveaxis((points / np.asarray(spacing, dtype=np.float64))[..., ::-1], -1, 0)
    outside: dict[str, Any] = {"mode": "nearest"} if beyond is None else {"mode": "constant", "cval": beyond}
    return ndimage.map_coordinates(hu, index, np.float64, order=1, **outside)
