"""Exact line integrals of a volume of uniform voxels: Siddon, Medical Physics 12 (1985) 252. Plastimatch's rule.

Siddon sorts a ray's crossings with all voxel planes. Here rays are walked slab by slab along the axis along which
they cross most voxels: within one slab a ray crosses at most one plane of each of the other two axes, so that it
has at most three pieces there, ordered by one comparison. Same lengths, no sort, and all rays at once.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Camera, Real
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import Grid, VoxelSums, project_rays, slab_walks


def project_siddon(
    attenuation: Volume, spacing: Real | Sequence[Real], camera: Camera, view: str, *, pose: Pose | None = None
) -> Xray:
    """Line integrals as a camera sees them, of voxels that are uniform boxes. Arguments as in ``project_rays``."""
    return project_rays(attenuation, spacing, camera, view, pose, partial(VoxelSums, _siddon_blocks))


def _siddon_blocks(
    starts: np.ndarray, ends: np.ndarray, grid: Grid, like: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for rays, axis, at, slope, length in slab_walks(starts, ends, grid, like, voxels_per_slab=3):
        strides = grid.strides
        slab = torch.arange(grid.shape[axis], dtype=like.dtype, device=like.device)
        first, crossing, offset = [], [], []
        for column, other in enumerate(other for other in range(3) if other != axis):
            before = at[:, column, None] + slope[:, column, None] * slab
            after = before + slope[:, column, None]
            low, high = before.floor(), after.floor()
            # Where in the slab [0, 1] the plane between two voxels is crossed; 1 where none is.
            plane = torch.maximum(low, high)
            where = torch.where(low == high, 1.0, (plane - before) / slope[:, column, None])
            crossing.append(where.clamp_(0, 1))
            # The margin around the volume is air, which also serves the space beyond it.
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
