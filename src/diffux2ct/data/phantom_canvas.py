"""A voxel canvas for implicit shapes: boxes, signed distances, and painting with partial volume.

Everything here is numpy, in mm about the centre of the volume, with points in the order (x, y, z) = (Left,
Posterior, Superior). Arrays are [D, H, W], so coordinates broadcast as z[D,1,1], y[1,H,1], x[1,1,W].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Real = float | int
Point = Sequence[Real] | np.ndarray


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


class Canvas:
    """Hounsfield values and labels of a cube that shapes are painted into, later ones over earlier ones.

    A shape is a signed distance in mm (negative inside). Its coverage of a voxel falls linearly from 1 to 0
    over one voxel about the surface: the partial volume effect.
    """

    def __init__(self, size: int, extent_mm: Real):
        self.size = size
        self.voxel = extent_mm / size
        self.coords = ((np.arange(size) + 0.5) * self.voxel - extent_mm / 2).astype(np.float32)
        self.hu = np.full((size, size, size), -1000.0, np.float32)
        self.labels = np.zeros((size, size, size), np.uint8)

    def box(self, low: Point, high: Point) -> Box | None:
        """The part between two corners (x, y, z), one voxel wider; None where it misses the canvas."""
        slices = []
        first = float(self.coords[0])
        for lo, hi in zip(low, high, strict=True):
            start = max(0, math.floor((float(lo) - first) / self.voxel))
            stop = min(self.size, math.ceil((float(hi) - first) / self.voxel) + 1)
            if stop <= start:
                return None
            slices.append(slice(start, stop))
        sx, sy, sz = slices
        return Box(
            (sz, sy, sx),
            x=self.coords[sx][None, None, :],
            y=self.coords[sy][None, :, None],
            z=self.coords[sz][:, None, None],
        )

    def whole(self) -> Box:
        """All of the canvas as a box."""
        half = self.size * self.voxel
        box = self.box((-half,) * 3, (half,) * 3)
        assert box is not None
        return box

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """Fraction of each voxel inside the surface at `distance` = 0."""
        return np.clip(0.5 - distance / np.float32(self.voxel), 0, 1)

    def fill(self, box: Box, distance: np.ndarray, hu, label: int | None = None) -> None:
        """Paint a solid shape. `hu` is a number or an array that broadcasts over the box."""
        cover = self.coverage(distance)
        view = self.hu[box.slices]
        view += cover * (hu - view)
        if label is not None:
            self.labels[box.slices][cover >= 0.5] = label

    def fill_bone(self, box: Box, distance: np.ndarray, thickness, cortical, core, label: int) -> None:
        """Paint a shell of `thickness` mm around a core.

        Both coverages come from one distance, so a shell thinner than a voxel keeps its right share.
        """
        outer = self.coverage(distance)
        inner = self.coverage(distance + thickness)
        view = self.hu[box.slices]
        view *= 1 - outer
        view += (outer - inner) * cortical + inner * core
        self.labels[box.slices][outer >= 0.5] = label


# --- signed distances (mm); x, y, z are coordinate arrays that broadcast against each other


def ellipsoid(x, y, z, centre: Point, radii: Point) -> np.ndarray:
    """Distance to an axis-aligned ellipsoid, exact at its surface to first order."""
    p = [(c - float(o)) for c, o in zip((x, y, z), centre, strict=True)]
    k0 = np.sqrt(sum((c / float(r)) ** 2 for c, r in zip(p, radii, strict=True)))
    k1 = np.sqrt(sum((c / float(r) ** 2) ** 2 for c, r in zip(p, radii, strict=True)))
    return k0 * (k0 - 1) / np.maximum(k1, 1e-6)


def capsule(x, y, z, start: Point, end: Point, radius: Real, end_radius: Real | None = None) -> np.ndarray:
    """Distance to a segment with round ends, its radius going linearly from `radius` to `end_radius`."""
    px, py, pz = x - float(start[0]), y - float(start[1]), z - float(start[2])
    vx, vy, vz = (float(b) - float(a) for a, b in zip(start, end, strict=True))
    t = np.clip((px * vx + py * vy + pz * vz) / (vx * vx + vy * vy + vz * vz + 1e-9), 0, 1)
    reach = np.sqrt((px - t * vx) ** 2 + (py - t * vy) ** 2 + (pz - t * vz) ** 2)
    return reach - (radius if end_radius is None else radius + t * (end_radius - radius))


def super_ellipse(x, y, half_x, half_y, power: Real) -> np.ndarray:
    """Radial distance to |x/half_x|^p + |y/half_y|^p = 1 in the plane."""
    rho = ((np.abs(x) / half_x) ** power + (np.abs(y) / half_y) ** power) ** (1 / power)
    reach = np.sqrt(x * x + y * y)
    # At the very centre the ratio is 0/0; the smaller half axis is the distance to the surface there.
    return np.where(rho > 1e-3, reach - reach / np.maximum(rho, 1e-3), -np.minimum(half_x, half_y))


def smooth_union(a: np.ndarray, b: np.ndarray, blend: Real) -> np.ndarray:
    """Union of two distances with a fillet of about `blend` mm."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    return np.minimum(a, b) - h * h * (blend / 4)


def tube(canvas: Canvas, points: np.ndarray, radii: np.ndarray) -> tuple[Box, np.ndarray] | None:
    """Distance to a polyline [N, 3] with a radius per point [N], in its bounding box; None if out of view.

    One joint distance for all segments, so that a shell has no walls at the joints.
    """
    margin = float(radii.max()) + 2 * canvas.voxel
    box = canvas.box(points.min(0) - margin, points.max(0) + margin)
    if box is None:
        return None
    distance = np.full(box.shape, 1e3, np.float32)
    first = [s.start for s in box.slices]
    for i in range(len(points) - 1):
        reach = float(max(radii[i], radii[i + 1])) + 2 * canvas.voxel
        ends = points[i : i + 2]
        part = canvas.box(ends.min(0) - reach, ends.max(0) + reach)
        if part is None:
            continue
        local = tuple(slice(s.start - o, s.stop - o) for s, o in zip(part.slices, first, strict=True))
        d = capsule(part.x, part.y, part.z, ends[0], ends[1], float(radii[i]), float(radii[i + 1]))
        np.minimum(distance[local], d, out=distance[local])
    return box, distance


def lattice_noise(
    rng: np.random.Generator, canvas: Canvas, pitch_mm: float, reach_mm: float = 256.0
) -> np.ndarray:
    """Smooth noise, unit normal at the nodes of a lattice of fixed pitch in mm: any size sees the same field."""
    count = int(np.ceil(2 * reach_mm / pitch_mm)) + 1
    field = rng.standard_normal((count, count, count), dtype=np.float32)
    at = np.clip((canvas.coords + reach_mm) / pitch_mm, 0, count - 1.001)
    low = at.astype(np.intp)
    weight = (at - low).astype(np.float32)
    weight = weight * weight * (3 - 2 * weight)
    for axis in (0, 1, 2):
        shape = [1, 1, 1]
        shape[axis] = -1
        w = weight.reshape(shape)
        field = field.take(low, axis) * (1 - w) + field.take(low + 1, axis) * w
    return field
