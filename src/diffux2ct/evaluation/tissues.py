"""Mean absolute error in HU, over all voxels and by what the true voxel is: air, lung, soft tissue, bone, metal.

The classes are ranges of the TRUTH's HU and share out all voxels, so that the overall error is their mean weighted by
size, and a method cannot move a voxel to another class.
"""

import math

from jaxtyping import Float64
from torch import Tensor

TISSUES: dict[str, tuple[float, float]] = {
    "air": (-math.inf, -900.0),
    "lung": (-900.0, -500.0),
    "soft": (-500.0, 226.0),
    "bone": (226.0, 1100.0),
    "metal": (1100.0, math.inf),
}
"""From (inclusive) and to (exclusive) in HU.

-900 and -500 bound normally aerated lung (Gattinoni et al., Am J Respir Crit Care Med 164, 2001; what lies below is
air, in the body or around it). 226 is where the preset "Bone (CT)" of Mimics (Materialise) begins, as for
``dice_bone``: spongy bone is mostly below it, so "soft" holds fat, muscle, organs, marrow, poorly aerated lung and the
skin's partial volume. 1100 is where the search for implants sees metal: below the usual window's end (1500 HU), above
which a prepared volume tells nothing. The densest cortical bone may exceed it.
"""


def mae_hu(
    prediction: Float64[Tensor, "b d h w"], target: Float64[Tensor, "b d h w"]
) -> dict[str, Float64[Tensor, " b"]]:
    """{"mae", "mae_air", "mae_lung", "mae_soft", "mae_bone", "mae_metal"} in HU, one value a volume.

    Volumes in HU. NaN where a volume has no true voxel of a tissue.
    """
    error = (prediction - target).abs()
    dims = (1, 2, 3)
    scores = {"mae": error.mean(dim=dims)}
    for name, (low, high) in TISSUES.items():
        inside = (target >= low).logical_and_(target < high)
        scores[f"mae_{name}"] = (error * inside).sum(dim=dims) / inside.sum(dim=dims)  # 0 / 0 is NaN
    return scores
