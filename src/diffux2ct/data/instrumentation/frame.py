"""Coordinate frames, and volumes looked up by position. Sums are spelled out: no BLAS, so bytes know no threads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
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
        self,
        frame: Frame,
        low: Float[np.ndarray, "3"],
        high: Float[np.ndarray, "3"],
        step: float,
        order: int = 1,
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
    """Vectors made one long."""
    return vector / np.sqrt((vector * vector).sum(-1, keepdims=True))
