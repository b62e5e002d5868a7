"""How deep a point lies under the patient's skin."""

import numpy as np
from jaxtyping import Num

from diffux2ct.data.instrumentation.frame import Field
from diffux2ct.data.instrumentation.masks import components, distance_inside

_AIR_HU = -300  # below this is air, not skin
_STEP = 3.0  # mm, of the grid on which the skin is sought


def skin_depth(hu: Num[np.ndarray, "D H W"], grid: Field) -> Field:
    """Distance to the air around the patient, mm, on a coarse grid; large where the scan shows no such air.

    hu: HU on ``grid``'s voxels. Air around the patient is that which reaches a side of the volume: bowel and lungs,
    open to its ends only, are inside. Couches count as patient.
    """
    every = np.maximum(1, np.round(_STEP / grid.step)).astype(int)
    coarse = hu[:: every[2], :: every[1], :: every[0]]
    pieces = components(coarse < _AIR_HU)
    sides = np.concatenate(
        [pieces[:, face].ravel() for face in (0, -1)] + [pieces[..., f].ravel() for f in (0, -1)]
    )
    outside = np.isin(pieces, np.unique(sides[sides > 0]))
    step = grid.step * every
    # Without any, an infinite distance is not defined.
    depth = distance_inside(~outside, step[::-1]) if outside.any() else np.full(coarse.shape, 1e3)
    return Field(depth.astype(np.float32), grid.start, step)
