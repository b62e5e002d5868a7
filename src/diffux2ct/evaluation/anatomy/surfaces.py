"""Distances between the surfaces of two masks, mm: 95 % Hausdorff distance and average surface distance.

Conventions of MONAI (``HausdorffDistanceMetric``, ``SurfaceDistanceMetric``), to which the numbers are equal: the
surface is the mask's voxels that have a face in common with a voxel outside it (beyond the volume counts as outside),
and distances run between voxel centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import KDTree

Spacing = tuple[float | int, float | int, float | int]


def points_of(mask: Bool[np.ndarray, "d h w"], spacing: Spacing) -> Float[np.ndarray, "_ 3"]:
    """Centres of a mask's voxels, mm (x, y, z)."""
    return np.argwhere(mask)[:, ::-1] * np.asarray(spacing, dtype=np.float64)


def corner_of(box: Sequence[slice], spacing: Spacing) -> Float[np.ndarray, "3"]:
    """Centre of a box's first voxel in its volume, mm (x, y, z)."""
    return np.array([part.start for part in box])[::-1] * np.asarray(spacing, dtype=np.float64)


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest of the other, mm: both directions."""

    from_prediction: Float[np.ndarray, "n"]
    from_truth: Float[np.ndarray, "m"]

    def hausdorff(self, percentile: float | int = 95) -> float:
        """The larger of the two directions' percentiles (MONAI's and surface-distance's rule), mm.

        Percentiles of both directions pooled, as others take them, are smaller: half of what one mask has too much
        is weighed down by the other mask's good surface.
        """
        directions = (self.from_prediction, self.from_truth)
        return max(float(np.percentile(distances, percentile)) for distances in directions)

    def average(self) -> float:
        """Mean over the surface voxels of both masks, mm: the average symmetric surface distance."""
        return float(np.concatenate([self.from_prediction, self.from_truth]).mean())


def surface_distances(
    prediction: Bool[np.ndarray, "d h w"], truth: Bool[np.ndarray, "d h w"], spacing: Spacing
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks; None unless both hold a voxel.

    spacing: (x, y, z) mm, of axes [z, y, x]. A structure that only one of both has is infinitely far from the other's,
    which no mean survives: it has no distance, and its Dice is 0 instead, so report both.
    """
    step = np.asarray(spacing, dtype=np.float64)[::-1]
    points = [surface_voxels(mask) * step for mask in (prediction, truth)]
    if not all(len(found) for found in points):
        return None
    # Surfaces are few voxels, mostly near each other: a tree is faster here than a distance transform, and as exact.
    trees = [KDTree(found) for found in points]
    nearest = [np.asarray(trees[1 - i].query(points[i])[0], dtype=np.float64) for i in (0, 1)]
    return SurfaceDistances(*nearest)


def surface_voxels(mask: Bool[np.ndarray, "d h w"]) -> np.ndarray:
    """Indices [n, 3] (z, y, x) of the mask's voxels with a face towards the outside."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return np.zeros((0, 3), np.intp)
    box = boxes[0]
    inside = mask[box]
    # Beyond the box all is outside, and beyond the volume it counts as such.
    edge = inside & ~np.asarray(ndimage.binary_erosion(inside), dtype=bool)
    return np.argwhere(edge) + np.array([part.start for part in box])


def hd95(prediction: Bool[np.ndarray, "d h w"], truth: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float | None:
    """95 % Hausdorff distance, mm; None unless both masks hold a voxel. See ``SurfaceDistances.hausdorff``."""
    found = surface_distances(prediction, truth, spacing)
    return None if found is None else found.hausdorff(95)
