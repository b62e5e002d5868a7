"""Heights and spacing of vertebrae in a reconstruction without a segmentation of it: the true end plates, found again.

The true labels say where each end plate is. The density around it, in a short cylinder along the vertebra's axis, is
then looked for in the reconstruction by sliding along that axis: the best normalised cross-correlation says how far
the plate has moved (digital volume correlation, Bay et al., Exp Mech 39 (1999) 217, in one dimension). Moves across
the axis are not seen. Where nothing correlates there is no plate, and no error is made up: ``share`` tells how many
vertebrae were found.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Num
from scipy import ndimage

from diffux2ct.evaluation.surfaces import Spacing
from diffux2ct.evaluation.vertebrae import RADIUS, VertebralBody

REACH_MM = 8.0
"""Farthest move that is looked for: half-way to the next plate that looks alike would be 10 mm or more."""

MIN_CORRELATION = 0.6
"""Of the best fit, at least; less is another structure."""

_WINDOW = 6.0  # mm on either side of a plate that are compared
_STEP = 0.5  # mm, of the search


def match_bodies(
    prediction_hu: Num[np.ndarray, "d h w"],
    truth_hu: Num[np.ndarray, "d h w"],
    truth: Mapping[int, VertebralBody],
    spacing: Spacing,
) -> dict[int, VertebralBody]:
    """The true bodies as the reconstruction shows them, for ``vertebra_errors``; without those not found.

    truth: ``measure_bodies`` of the true labels. spacing: (x, y, z) mm. Both end plates must be found.
    """
    found = {}
    for value, body in truth.items():
        moves = []
        for side in (1, -1):
            plate = body.centre + 0.5 * side * body.height * body.axis
            moves.append(_move(prediction_hu, truth_hu, plate, body.axis, spacing))
        upper, lower = moves
        if upper is not None and lower is not None:
            centre = body.centre + 0.5 * (upper + lower) * body.axis
            found[value] = replace(body, centre=centre, height=body.height + upper - lower)
    return found


def _move(
    prediction: np.ndarray, truth: np.ndarray, plate: np.ndarray, axis: np.ndarray, spacing: Spacing
) -> float | None:
    """How far a plate has moved along the axis, mm; None if it is not found within reach."""
    wanted = _cylinder(truth, plate, axis, _WINDOW, spacing)
    there = _cylinder(prediction, plate, axis, _WINDOW + REACH_MM, spacing)
    length = wanted.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(there, length, axis=1)  # [column, shift, along]
    a = wanted - wanted.mean()
    b = windows - windows.mean((0, 2), keepdims=True)
    norm = np.sqrt(np.square(a).sum() * np.square(b).sum((0, 2)))
    correlation = np.einsum("cl,csl->s", a, b) / np.maximum(norm, 1e-9)
    best = int(correlation.argmax())
    # At the end of the search the true maximum may lie beyond.
    if correlation[best] < MIN_CORRELATION or best in (0, len(correlation) - 1):
        return None
    left, middle, right = correlation[best - 1 : best + 2]
    bend = left - 2 * middle + right
    part = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float((best + part) * _STEP - REACH_MM)


def _cylinder(
    hu: np.ndarray, centre: np.ndarray, axis: np.ndarray, half: float, spacing: Spacing
) -> np.ndarray:
    """HU [column, along] in a cylinder of ``RADIUS`` around an axis, from -half to half mm."""
    basis = np.linalg.svd(axis[None])[2][1:]
    grid = np.arange(-RADIUS, RADIUS + 1e-6, 2.0)
    u, v = (side.ravel() for side in np.meshgrid(grid, grid))
    inside = u**2 + v**2 <= RADIUS**2 + 1e-6
    across = u[inside, None] * basis[0] + v[inside, None] * basis[1]
    along = np.arange(-round(half / _STEP), round(half / _STEP) + 1) * _STEP
    points = centre + across[:, None] + along[:, None] * axis
    index = np.moveaxis((points / np.asarray(spacing, dtype=np.float64))[..., ::-1], -1, 0)
    return ndimage.map_coordinates(hu, index, np.float64, order=1, mode="nearest")
