"""Differentiable line integrals of a volume through a camera by Joseph's rule (IEEE TMI 1 (1982) 192).

The volume is cut into slabs of one voxel along the beam axis; a ray's integral is
the sum of bilinearly interpolated slab values times the length that the ray spends in a slab. Our cameras look
along an axis, so a slab's interpolation separates into one banded matrix for the rows and one for the columns,
and the whole projection is a batched matrix product. Outside the volume there is air.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Camera, Real, checked_view, spacing_xyz
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import Grid, VoxelSums, check_clearance, per_block, project_rays, slab_walks


def project(attenuation: Volume, spacing: Real | Sequence[Real], camera: Camera, view: str) -> Xray:
    """Line integrals of a volume as a camera sees it. Arguments, result and errors as in ``project_rays``."""
    sx, sy, s_rows = spacing_xyz(spacing)
    # Of [B, D, H, W]: the axis along the columns and the axis along the beam.
    across, depth, s_across, s_depth = (3, 2, sx, sy) if checked_view(view) == "frontal" else (2, 3, sy, sx)
    with torch.autocast(attenuation.device.type, enabled=False):
        volume = attenuation[:, 0]
        volume = volume if volume.dtype == torch.float64 else volume.float()
        slabs = volume.permute(depth, 0, 1, across)  # [slab, b, z, across]
        rows_mm = _centred(camera.rows, camera.pitch[0], volume)
        cols_mm = _centred(camera.cols, camera.pitch[1], volume)
        if camera.kind == "parallel":
            # Every slab has the same weights: sum first.
            slabs, depths = slabs.sum(0, keepdim=True), volume.new_zeros(1)
            length = volume.new_full((1, 1), s_depth)
        else:
            check_clearance(Grid((volume.shape[3], volume.shape[2], volume.shape[1]), (sx, sy, s_rows)), camera, view)
            depths = _centred(slabs.shape[0], s_depth, volume)
            # A slit camera's source moves with the row, so only a column takes its ray off the beam axis.
            off_axis = rows_mm[:, None] ** 2 * (camera.kind == "cone") + cols_mm**2
            length = s_depth * (1 + off_axis / camera.sid**2).sqrt()
        row_shrink, col_shrink = 1 / camera.row_magnification(depths), 1 / camera.magnification(depths)
        rows_at = row_shrink[:, None] * (rows_mm / s_rows) + (slabs.shape[2] - 1) / 2
        cols_at = col_shrink[:, None] * (cols_mm / s_across) + (slabs.shape[3] - 1) / 2
        return (_sum_resampled_slabs(slabs, rows_at, cols_at) * length)[:, None]


def project_joseph(
    attenuation: Volume, spacing: Real | Sequence[Real], camera: Camera, view: str, *, pose: Pose | None = None
) -> Xray:
    """Line integrals by Joseph's rule of a patient in any pose. Arguments as in ``project_rays``.

    Without a pose this is ``project``; with one, rays do not share their rows and columns, and each ray's slabs are
    sampled one by one.
    """
    if pose is None or pose.is_identity:
        return project(attenuation, spacing, camera, view)
    return project_rays(attenuation, spacing, camera, view, pose, partial(VoxelSums, _joseph_blocks))


def _joseph_blocks(
    starts: np.ndarray, ends: np.ndarray, grid: Grid, like: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for rays, axis, at, slope, length in slab_walks(starts, ends, grid, like, voxels_per_slab=4):
        strides = grid.strides
        slab = torch.arange(grid.shape[axis], dtype=like.dtype, device=like.device)
        index = ((slab.long() + 1) * strides[axis]).expand(len(rays), -1)
        corners = [(index, length[:, None].expand_as(index))]
        for column, other in enumerate(other for other in range(3) if other != axis):
            # From edges (voxel k spans k to k + 1) to centres that count the margin; beyond it all is air as it is.
            last = grid.shape[other] + 1
            point = at[:, column, None] + slope[:, column, None] * (slab + 0.5) + 0.5
            point = point.clamp_(0, last)
            low = point.floor().clamp_(max=last - 1)
            upper, low = point - low, low.long() * strides[other]
            corners = [
                (index + low + up * strides[other], weight * (upper if up else 1 - upper))
                for index, weight in corners
                for up in (0, 1)
            ]
        yield rays, torch.cat([i for i, _ in corners], 1), torch.cat([w for _, w in corners], 1)


def _sum_resampled_slabs(slabs: Tensor, rows_at: Tensor, cols_at: Tensor) -> Tensor:
    """Sum over slabs j of rows(j) @ slabs[j] @ cols(j).T: [J, B, K, I], [J, R], [J, C] -> [B, R, C]."""
    _, batch, height, width = slabs.shape
    image = slabs.new_zeros(())
    # A block of slabs whose weights stay in a CPU's cache is about twice as fast as all slabs at once.
    size = per_block(max(height * rows_at.shape[1], width * cols_at.shape[1]), slabs.device)
    for start in range(0, slabs.shape[0], size):
        block = slice(start, start + size)
        part = slabs[block].reshape(-1, batch * height, width)
        # Without unit stride (the lateral view) bmm falls back to one product per slab.
        part = part if part.stride(2) == 1 else part.contiguous()
        columns = torch.bmm(part, _hat_weights(cols_at[block], width))
        columns = columns.unflatten(1, (batch, height)).transpose(0, 1).flatten(1, 2)  # [b, (slab z), col]
        rows = _hat_weights(rows_at[block], height).flatten(0, 1)  # [(slab z), row]
        image = image + rows.T @ columns
    return image


def _hat_weights(position: Tensor, num_voxels: int) -> Tensor:
    """Linear interpolation weights relu(1 - |voxel - position|): [J, P] -> [J, num_voxels, P]."""
    voxel = torch.arange(num_voxels, dtype=position.dtype, device=position.device)
    return (position[:, None, :] - voxel[:, None]).abs_().neg_().add_(1).clamp_(min=0)


def _centred(count: int, step: Real, like: Tensor) -> Tensor:
    """Positions of ``count`` centres ``step`` apart around 0, mm."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2) * step


def mean_projections(
    volume: Float[Tensor, "b 1 d h w"],
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 d w"], Float[Tensor, "b 1 d h"]]:
    """Means along each axis: axial (over z), coronal (over y), sagittal (over x). Keeps the unit."""
    return volume.mean(2), volume.mean(3), volume.mean(4)
