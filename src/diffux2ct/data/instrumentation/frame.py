"""Coordinate frames, and volumes sampled by position.

Sums are spelled out instead of left to BLAS, so that the bytes do not depend on the number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

Points = Float[np.ndarray, "*n 3"]


@dataclass(frozen=True)
class Frame:
    """A right-handed frame: ``origin`` mm LPS, ``axes`` rows are its unit vectors x (left), y (posterior), z (up)."""

    origin: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]

    def to_local(self, points: Points) -> Points:
        """Positions in LPS mm -> in this frame, mm."""
        offset = points - self.origin
        return np.stack([(offset * axis).sum(-1) for axis in self.axes], -1)

    def to_world(self, points: Points) -> Points:
        """Positions in this frame, mm -> LPS mm."""
        return self.origin + sum(points[..., i, None] * self.axes[i] for i in range(3))

    def turned(self, axis: int, degrees: float | int) -> "Frame":
        """Turned about its own axis 0 (x), 1 (y) or 2 (z), right-handed."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        axes = self.axes.copy()
        axes[i] = c * self.axes[i] + s * self.axes[j]
        axes[j] = c * self.axes[j] - s * self.axes[i]
        return Frame(self.origin, axes)

    def moved(self, local: Float[np.ndarray, "3"]) -> "Frame":
        """The same axes with the origin at a position given in this frame, mm."""
        return Frame(self.to_world(local), self.axes)


@dataclass(frozen=True)
class Field:
    """A volume [nz, ny, nx] on a grid along a frame's axes: ``start`` (x, y, z) of its first voxel, mm, and steps."""

    values: Shaped[np.ndarray, "nz ny nx"]
    start: Float[np.ndarray, "3"]
    step: Float[np.ndarray, "3"]

    def at(self, points: Points, outside: float | int, order: int = 1) -> Float[np.ndarray, "*n"]:
        """Values at positions (x, y, z) of the field's frame, mm; linear (order 1) or nearest (0)."""
        index = ((points - self.start) / self.step).reshape(-1, 3).T[::-1]
        values = ndimage.map_coordinates(self.values, index, np.float64, order, mode="constant", cval=outside)
        return values.reshape(points.shape[:-1])

    def along(
        self, frame: Frame, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"], step: float, order: int = 1
    ) -> "Field":
        """This field (LPS) on cubic voxels along ``frame``, in the box from ``low`` to ``high`` mm there; 0 outside."""
        shape = np.ceil((high - low) / step).astype(int) + 1
        # Output index (z, y, x) -> input index (z, y, x).
        matrix = np.array([[frame.axes[j, i] * step / self.step[i] for j in (2, 1, 0)] for i in (2, 1, 0)])
        offset: Any = ((frame.to_world(low) - self.start) / self.step)[::-1]
        values = ndimage.affine_transform(
            self.values, matrix, offset, tuple(shape[::-1]), order=order, mode="constant", prefilter=False
        )
        return Field(values, low, np.full(3, float(step)))


def unit(vector: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Unit vectors."""
    return vector / np.sqrt((vector * vector).sum(-1, keepdims=True))


# Components and distances of boolean masks of any dimension: SciPy's, with one return type.
def components(mask: Bool[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Face-connected pieces numbered from 1; 0 outside."""
    numbered: Any = ndimage.label(mask)
    return numbered[0]


def holes(mask: Bool[np.ndarray, "ny nx"]) -> Int[np.ndarray, "ny nx"]:
    """Holes of a section, numbered from 1; 0 elsewhere."""
    return components(np.asarray(ndimage.binary_fill_holes(mask)) & ~mask)


def distance_inside(
    mask: Bool[np.ndarray, "*n"], step: float | Sequence[float] | Float[np.ndarray, "n_axes"]
) -> Float[np.ndarray, "*n"]:
    """Distance to the nearest voxel outside, in the unit of ``step`` (one number, or one per array axis)."""
    return np.asarray(ndimage.distance_transform_edt(mask, step))
