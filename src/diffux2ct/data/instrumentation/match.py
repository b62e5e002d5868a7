"""Labels and scan brought together: one grid, and a check that the labels lie on the scan's bones."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from diffux2ct.data.ct_image import LabelImage
from diffux2ct.data.instrumentation.frame import Field
from diffux2ct.errors import UserError

_SHIFT = 10.0  # mm
_BETTER = 5.0  # HU by which a shift must be better to count
_RANGE = (-200.0, 600.0)  # HU; bowel gas and metal shall not decide


def labels_on_grid(labels: LabelImage, grid: Field) -> UInt8[np.ndarray, "D H W"]:
    """Nearest labels at the voxels of ``grid`` (LPS mm), 0 outside; both grids lie along the patient's axes."""
    index = []
    for i in range(3):
        at = grid.start[i] + np.arange(grid.values.shape[2 - i]) * grid.step[i]
        nearest = np.rint((at - labels.origin[i]) / labels.spacing[i]).astype(int)
        # One slot more, of zeros, for what lies outside.
        size = labels.labels.shape[2 - i]
        index.append(np.where((nearest >= 0) & (nearest < size), nearest, size))
    padded = np.pad(labels.labels, ((0, 1), (0, 1), (0, 1)))
    return padded[np.ix_(*index[::-1])]


def check_match(scan: Field, labels: UInt8[np.ndarray, "D H W"], values: Sequence[int]) -> None:
    """UserError where the labels lie brighter once they are shifted by 10 mm: then they are not of this scan.

    It compares the scan with itself, so that it holds for soft bones as well.
    """
    index = np.argwhere(np.isin(labels, values))
    if len(index) == 0:
        raise UserError("the labels hold no lumbar vertebra (20 to 24); leave this scan without implants")
    index = index[:: max(1, len(index) // 50_000)]

    def mean(shift: np.ndarray) -> float:
        z, y, x = ((index + shift).clip(0, np.array(labels.shape) - 1)).T
        return float(scan.values[z, y, x].clip(*_RANGE).mean(dtype=np.float64))

    here = mean(np.zeros(3, int))
    for axis in range(3):
        step = max(1, round(_SHIFT / float(scan.step[::-1][axis])))
        for sign in (-1, 1):
            shift = np.zeros(3, int)
            shift[axis] = sign * step
            if mean(shift) > here + _BETTER:
                raise UserError(
                    f"the labels do not lie on the scan's bones (brighter {_SHIFT:g} mm aside); "
                    "check that they belong to this scan"
                )
