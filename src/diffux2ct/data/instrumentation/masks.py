"""Components and distances of boolean masks of any dimension: SciPy's, with one return type."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage


def components(mask: Bool[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Face-connected pieces numbered from 1; 0 outside."""
    found: Any = ndimage.label(mask)
    return found[0]


def holes(mask: Bool[np.ndarray, "ny nx"]) -> Int[np.ndarray, "ny nx"]:
    """What a section encloses without being it, numbered from 1."""
    filled = np.asarray(ndimage.binary_fill_holes(mask))
    return components(filled & ~mask)


def distance_inside(
    mask: Bool[np.ndarray, "*n"], step: float | Sequence[float] | Float[np.ndarray, "n_axes"]
) -> Float[np.ndarray, "*n"]:
    """Distance to the nearest voxel outside, in the unit of ``step`` (one number, or one per array axis)."""
    return np.asarray(ndimage.distance_transform_edt(mask, step))
