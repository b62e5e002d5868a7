"""Labels on the scan's grid, a check that they lie on its bones, and depths under the patient's skin."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num, UInt8

from diffux2ct.data.instrumentation.frame import Field, components, distance_inside
from diffux2ct.data.io.ct_image import LabelImage
from diffux2ct.errors import UserError

_SHIFT = 10.0  # mm
_BETTER = 5.0  # HU by which a shift must be brighter to count
_RANGE = (-200.0, 600.0)  # HU, clipped so that bowel gas and metal do not decide
_AIR_HU = -300  # below this is air, not skin
_STEP = 3.0  # mm, of the grid on which the skin is sought


def labels_on_grid(labels: LabelImage, grid: Field) -> UInt8[np.ndarray, "D H W"]:
    """Nearest labels at the voxels of ``grid`` (LPS mm), 0 outside; both grids lie along the patient's axes."""
    index = []
    for i in range(3):
        at = grid.start[i] + np.arange(grid.values.shape[2 - i]) * grid.step[i]
        nearest = np.rint((at - labels.origin[i]) / labels.spacing[i]).astype(int)
        # One slot more, of zeros, for voxels outside.
        size = labels.labels.shape[2 - i]
        index.append(np.where((nearest >= 0) & (nearest < size), nearest, size))
    padded = np.pad(labels.labels, ((0, 1), (0, 1), (0, 1)))
    return padded[np.ix_(*index[::-1])]


def check_match(scan: Field, labels: UInt8[np.ndarray, "D H W"], values: Sequence[int]) -> None:
    """UserError where the scan is brighter 10 mm beside the labels: then they are not of this scan.

    The comparison is within the scan, so that it holds for soft bones as well.
    """
    index = np.argwhere(np.isin(labels, values))
    if len(index) == 0:
        raise UserError("the labels hold no lumbar vertebra (20 to 24); leave this scan without implants")
    index = index[:: max(1, len(index) // 50_000)]

    def mean(shift: np.ndarray) -> float:
        z, y, x = ((index + shift).clip(0, np.array(labels.shape) - 1)).T
        return float(scan.values[z, y, x].clip(*_RANGE).mean(dtype=np.float64))

    shifts = np.diag(np.maximum(1, np.rint(_SHIFT / scan.step[::-1])).astype(int))
    if max(mean(shift) for shift in (*shifts, *-shifts)) > mean(np.zeros(3, int)) + _BETTER:
        raise UserError(
            f"the labels do not lie on the scan's bones (brighter {_SHIFT:g} mm aside); "
            "check that they belong to this scan"
        )


def skin_depth(hu: Num[np.ndarray, "D H W"], grid: Field) -> Field:
    """Distance to the air around the patient, mm, on a coarse grid; 1000 where the scan shows no such air.

    hu: HU on ``grid``'s voxels. Air around the patient reaches a side of the volume: bowel and lungs, which are open to
    its ends only, are inside. Couches count as patient.
    """
    every = np.maximum(1, np.round(_STEP / grid.step)).astype(int)
    coarse = hu[:: every[2], :: every[1], :: every[0]]
    pieces = components(coarse < _AIR_HU)
    sides = np.concatenate([side.ravel() for k in (0, -1) for side in (pieces[:, k], pieces[..., k])])
    outside = np.isin(pieces, np.unique(sides[sides > 0]))
    step = grid.step * every
    # Without any, an infinite distance is not defined.
    depth = distance_inside(~outside, step[::-1]) if outside.any() else np.full(coarse.shape, 1e3)
    return Field(depth.astype(np.float32), grid.start, step)
