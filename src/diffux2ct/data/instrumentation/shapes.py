"""Screws and rods as signed distances, and the share of each voxel that they fill."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from diffux2ct.data.instrumentation.construct import Rod
from diffux2ct.data.instrumentation.frame import Field, Frame, Points, unit
from diffux2ct.data.instrumentation.trajectory import HEAD_RADIUS, TULIP_FOOT, TULIP_TOP, Screw, screw_frame

_TAPER = 8.0  # mm of conical tip
_SET_SCREW = (4.5, 6.5)  # mm: radius, and height of its top over the rod's axis
_FINE = 0.5  # mm, of the samples within a voxel; three each way at least


@dataclass(frozen=True)
class Solid:
    """A shape in LPS mm: ``distance`` [n, 3] -> [n], negative inside and true near the surface; its bounding box."""

    distance: Callable[[Points], Float[np.ndarray, "n"]]
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]


def screw_solid(screw: Screw, rod: Rod) -> Solid:
    """A pedicle screw with its polyaxial tulip turned to the rod, slot and set screw included.

    Threads are left out: below the resolution of CT, they would only lower HU that metal exceeds anyway.
    """
    shaft, tulip = screw_frame(screw.tip, screw.axis), _tulip_frame(screw, rod)
    end = screw.length + float(np.sqrt(((screw.head - screw.entry) ** 2).sum()))

    def distance(points: Points) -> Float[np.ndarray, "n"]:
        x, y, z = np.moveaxis(shaft.to_local(points), -1, 0)
        radius = screw.diameter / 2 * np.clip(0.4 + 0.6 * z / _TAPER, 0.4, 1.0)
        bolt = np.maximum.reduce([np.hypot(x, y) - radius, -z, z - end])
        x, y, z = np.moveaxis(tulip.to_local(points), -1, 0)
        across = np.hypot(x, y)
        cup = np.maximum.reduce([across - HEAD_RADIUS, -z - TULIP_FOOT, z - TULIP_TOP])
        slot = np.maximum(np.abs(y) - rod.diameter / 2 - 0.2, -z - rod.diameter / 2)
        plug = np.maximum.reduce([across - _SET_SCREW[0], rod.diameter / 2 - z, z - _SET_SCREW[1]])
        head = np.minimum(np.maximum(cup, -slot), plug)
        # The bolt ends under the rod, not in it.
        return np.minimum(np.maximum(bolt, -slot), head)

    reach = float(np.hypot(HEAD_RADIUS, TULIP_TOP))
    ends = np.stack([screw.tip, screw.head])
    return Solid(distance, ends.min(0) - reach, ends.max(0) + reach)


def rod_solid(rod: Rod) -> Solid:
    """A rod of round section."""
    tree, radius = KDTree(rod.axis), rod.diameter / 2

    def distance(points: Points) -> Float[np.ndarray, "n"]:
        far = radius + 12.0
        near = tree.query(points, distance_upper_bound=far, workers=1)[0]
        return np.minimum(near, far) - radius

    return Solid(distance, rod.axis.min(0) - radius, rod.axis.max(0) + radius)


def tulip_top(screw: Screw, rod: Rod) -> Float[np.ndarray, "3"]:
    """The point of a tulip that is nearest to the skin, LPS mm."""
    return _tulip_frame(screw, rod).to_world(np.array([0.0, 0.0, TULIP_TOP]))


def coverage(solid: Solid, grid: Field) -> tuple[tuple[slice, slice, slice], Float[np.ndarray, "d h w"]] | None:
    """Share (0..1) of each voxel of ``grid`` (LPS mm) that a solid fills: its box of voxels, and the shares in it.

    None if the solid lies outside the grid.
    """
    shape = np.array(grid.values.shape[::-1])
    first = np.floor((solid.low - grid.start) / grid.step - 1).astype(int).clip(0)
    last = np.minimum(np.ceil((solid.high - grid.start) / grid.step + 2).astype(int), shape)
    if np.any(last <= first):
        return None
    axes = [grid.start[i] + np.arange(first[i], last[i]) * grid.step[i] for i in range(3)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    centres = np.stack((x, y, z), -1).reshape(-1, 3)
    distance = solid.distance(centres)
    share = (distance < 0).astype(np.float64)
    # Only voxels that the surface may cross are sampled finely.
    half = 0.5 * float(np.sqrt((grid.step**2).sum())) * 1.1
    edge = np.flatnonzero(np.abs(distance) < half)
    counts = np.maximum(3, np.ceil(grid.step / _FINE).astype(int))
    steps = [((np.arange(n) + 0.5) / n - 0.5) * step for n, step in zip(counts, grid.step, strict=True)]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    for part in np.array_split(edge, max(1, len(edge) * len(offsets) // 2_000_000)):
        points = (centres[part][:, None] + offsets).reshape(-1, 3)
        share[part] = (solid.distance(points) < 0).reshape(len(part), -1).mean(1)
    box = slice(first[2], last[2]), slice(first[1], last[1]), slice(first[0], last[0])
    return box, share.reshape(z.shape)


def _tulip_frame(screw: Screw, rod: Rod) -> Frame:
    """x along the rod, z away from the bone: as near to the screw's axis as the rod allows (the head is polyaxial)."""
    along = rod.tangent_at(screw.head)
    out = unit(screw.axis - (screw.axis * along).sum() * along)
    return Frame(screw.head, np.stack([along, np.cross(out, along), out]))
