"""Exact line integrals of a volume of uniform voxels: Siddon, Medical Physics 12 (1985) 252. Plastimatch's rule.

Siddon sorts a ray's crossings with all voxel planes. Here rays are walked slab by slab along the axis along which
they cross most voxels: within one slab a ray crosses at most one plane of each of the other two axes, so that it
has at most three pieces there, in an order that one comparison gives. Same lengths, no sort, and all rays at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Camera, Real
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import Grid, VoxelSums, project_rays, rays_per_block


def project_siddon(
    attenuation: Volume, spacing: Real | Sequence[Real], camera: Camera, view: str, *, pose: Pose | None = None
) -> Xray:
    """Line integrals as a camera sees them, of voxels that are uniform boxes.

    Args:
        attenuation: [B, 1, D, H, W] LPS, linear attenuation in mm^-1; its centre is the isocentre. Outside is air.
        spacing: (x, y, z) mm, or one number.
        camera: the camera; its panel gives the image's pixels.
        view: "frontal" or "lateral".
        pose: how the patient lies; None: straight.

    Returns:
        [B, 1, rows, cols], dimensionless. Differentiable in ``attenuation``.

    Raises:
        UserError: the volume reaches the source or the panel.
    """

    def rule(starts: np.ndarray, ends: np.ndarray, grid: Grid) -> VoxelSums:
        return VoxelSums(len(starts), lambda like: _siddon_blocks(starts, ends, grid, like))

    return project_rays(attenuation, spacing, camera, view, pose, rule)


def _siddon_blocks(
    starts: np.ndarray, ends: np.ndarray, grid: Grid, like: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for rays, axis, at, slope, length in slab_walks(starts, ends, grid, like, voxels_per_slab=3):
        others = [other for other in range(3) if other != axis]
        strides = grid.strides
        slab = torch.arange(grid.shape[axis], dtype=like.dtype, device=like.device)
        first, crossing, offset = [], [], []
        for column, other in enumerate(others):
            before = at[:, column, None] + slope[:, column, None] * slab
            after = before + slope[:, column, None]
            low, high = before.floor(), after.floor()
            # Where in the slab [0, 1] the plane between two voxels is crossed; 1 where none is.
            plane = torch.maximum(low, high)
            where = torch.where(low == high, 1.0, (plane - before) / slope[:, column, None])
            crossing.append(where.clamp_(0, 1))
            # The margin around the volume is air: whatever lies farther out reads it too.
            low, high = (edge.clamp_(-1, grid.shape[other]).long() for edge in (low, high))
            first.append((low + 1) * strides[other])
            offset.append((high - low) * strides[other])
        start = first[0] + first[1] + (slab.long() + 1) * strides[axis]
        a, b = crossing
        second = start + torch.where(a < b, offset[0], offset[1])
        index = torch.stack((start, second, start + offset[0] + offset[1]), -1).flatten(1)
        early, late = torch.minimum(a, b), torch.maximum(a, b)
        weight = torch.stack((early, late - early, 1 - late), -1).flatten(1) * length[:, None]
        yield rays, index, weight


def slab_walks(
    starts: np.ndarray, ends: np.ndarray, grid: Grid, like: Tensor, voxels_per_slab: int
) -> Iterator[tuple[Tensor, int, Tensor, Tensor, Tensor]]:
    """Rays in blocks of those that cross most voxels along the same axis.

    Yields:
        rays [p]: which; axis: 0, 1 or 2 for x, y, z; at [p, 2]: where they enter the volume's first slab along
        that axis, in voxels along the other two axes (voxel k spans k to k + 1); slope [p, 2]: how far they move
        from slab to slab, in [-1, 1]; length [p]: mm of ray in a slab.
    """
    spacing, shape = np.asarray(grid.spacing), np.asarray(grid.shape)
    voxel = starts / spacing + shape / 2
    step = (ends - starts) / spacing
    steepest = np.abs(step).argmax(1)
    for axis in range(3):
        which = np.flatnonzero(steepest == axis)
        others = [other for other in range(3) if other != axis]
        # Geometry in float64: a source 1000 mm away costs float32 a thousandth of a voxel.
        slope = step[which][:, others] / step[which][:, axis, None]
        at = voxel[which][:, others] - voxel[which][:, axis, None] * slope
        length = np.linalg.norm(ends - starts, axis=1)[which] / np.abs(step[which][:, axis])
        size = rays_per_block(voxels_per_slab * int(shape[axis]), like.device)
        for start in range(0, which.size, size):
            part = slice(start, start + size)
            rays = torch.from_numpy(which[part]).to(like.device)
            there, by, mm = (torch.from_numpy(a[part]).to(like.device, like.dtype) for a in (at, slope, length))
            yield rays, axis, there, by, mm
