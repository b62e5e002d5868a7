"""A voxel canvas for implicit shapes: boxes, and painting signed distances with partial volume.

Points are (x, y, z) = (Left, Posterior, Superior) in mm. Arrays are [D, H, W], so coordinates broadcast as z[D,1,1],
y[1,H,1], x[1,1,W]. A box that misses the canvas is empty, and painting it changes nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Real = float | int | np.floating
Point = Sequence[Real] | np.ndarray
SOFT_PITCH = 6.0  # mm; the distance to a soft organ is smooth enough to be computed this coarsely
FAR = 1e3


@dataclass(frozen=True)
class Box:
    """A rectangular part of the canvas: its array slices and its open coordinate mesh in mm."""

    slices: tuple[slice, slice, slice]
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.z.shape[0], self.y.shape[1], self.x.shape[2]

    @property
    def empty(self) -> bool:
        """True if no voxel of the canvas lies in it."""
        return 0 in self.shape

    def within(self, outer: "Box") -> tuple[slice, slice, slice]:
        """Slices of this box in an array that covers `outer`."""
        a, b, c = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(self.slices, outer.slices, strict=True))
        return a, b, c


class Canvas:
    """Hounsfield values and labels of a cube that shapes are painted into, later ones over earlier ones.

    A shape is a signed distance in mm (negative inside). Its coverage of a voxel falls linearly from 1 to 0
    over one voxel about the surface: the partial volume effect. `centre`: of the cube, in the patient's frame.
    """

    def __init__(self, size: int, extent_mm: Real, centre: Point = (0, 0, 0)):
        self.size = size
        self.voxel = extent_mm / size
        steps = (np.arange(size) + 0.5) * self.voxel - extent_mm / 2
        self.coords = tuple((steps + float(c)).astype(np.float32) for c in centre)
        self.first = tuple(float(c[0]) for c in self.coords)
        self.hu = np.full((size, size, size), -1000.0, np.float32)
        self.labels = np.zeros((size, size, size), np.uint8)

    def box(self, low: Point, high: Point, within: Box | None = None) -> Box:
        """The part between two corners (x, y, z), one voxel wider, or its part in `within`."""
        slices = []
        for axis in (2, 1, 0):
            first = self.first[axis]
            start = math.floor((float(low[axis]) - first) / self.voxel)
            stop = math.ceil((float(high[axis]) - first) / self.voxel) + 1
            limit = within.slices[2 - axis] if within is not None else slice(0, self.size)
            start = min(max(start, limit.start), limit.stop)
            slices.append(slice(start, max(start, min(stop, limit.stop))))
        return self._cut(*slices)

    def around(self, centre: Point, reach: Real | Point, within: Box | None = None) -> Box:
        """The part within `reach` mm of a point along each axis, or its part in `within`."""
        at = np.asarray(centre, float)
        return self.box(at - reach, at + reach, within)

    def whole(self) -> Box:
        """All of the canvas as a box."""
        return self._cut(*[slice(0, self.size)] * 3)

    def _cut(self, sz: slice, sy: slice, sx: slice) -> Box:
        x, y, z = self.coords
        return Box((sz, sy, sx), x[sx][None, None, :], y[sy][None, :, None], z[sz][:, None, None])

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """Fraction of each voxel inside the surface at `distance` = 0; a new array."""
        cover = distance * np.float32(-1 / self.voxel)
        cover += np.float32(0.5)
        return np.clip(cover, 0, 1, out=cover)

    def fill(self, box: Box, distance: np.ndarray, hu, label: int | None = None) -> None:
        """Paint a solid shape. `hu` is a number or an array that broadcasts over the box."""
        self.blend(box, self.coverage(distance), hu, label)

    def blend(self, box: Box, cover: np.ndarray, hu, label: int | None = None) -> None:
        """Paint where `cover` is above 0. It is overwritten."""
        if label is not None:
            self.labels[box.slices][cover >= 0.5] = label
        view = self.hu[box.slices]
        cover *= hu - view
        view += cover

    def fill_bone(self, box: Box, distance: np.ndarray, thickness, cortical, core, label: int) -> None:
        """Paint a shell of `thickness` mm around a core.

        Both coverages come from one distance, so a shell thinner than a voxel keeps its right share.
        """
        outer, inner = self.coverage(distance), self.coverage(distance + thickness)
        self.labels[box.slices][outer >= 0.5] = label
        view = self.hu[box.slices]
        view *= 1 - outer
        outer -= inner
        outer *= cortical
        inner *= core
        view += outer
        view += inner

    def smooth(self, box: Box, function: Callable[..., Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Fields by a function of (x, y, z), computed on a mesh of SOFT_PITCH and interpolated linearly."""
        if self.voxel > 0.75 * SOFT_PITCH or box.empty:
            return [np.broadcast_to(np.asarray(f, np.float32), box.shape) for f in function(box.x, box.y, box.z)]
        meshes, weights = [], []
        for coords in (box.z, box.y, box.x):
            line = coords.ravel()
            nodes = max(2, math.ceil((line[-1] - line[0]) / SOFT_PITCH) + 1)
            at = np.linspace(0, nodes - 1, len(line), dtype=np.float32)
            low = np.minimum(at.astype(np.intp), nodes - 2)
            weights.append((low, at - low))
            meshes.append(np.linspace(line[0], line[-1], nodes, dtype=np.float32))
        z, y, x = meshes
        coarse = function(x[None, None, :], y[None, :, None], z[:, None, None])
        shape = (len(z), len(y), len(x))
        return [interpolate(np.broadcast_to(np.asarray(f, np.float32), shape), weights) for f in coarse]


def interpolate(field: np.ndarray, weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Linear interpolation along each axis in turn; weights: the lower node and the share of the next, per axis."""
    for axis in (2, 0, 1):  # the last axis first: gathering along it is slow, and the array is still small
        low, share = weights[axis]
        shape = [1, 1, 1]
        shape[axis] = -1
        part = field.take(low + 1, axis)
        field = field.take(low, axis)
        part -= field
        part *= share.astype(np.float32).reshape(shape)
        field += part
    return field
