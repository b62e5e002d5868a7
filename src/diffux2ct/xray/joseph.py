"""Differentiable X-ray projection of a volume through a camera: a pure function and a thin module over it.

Method: Joseph, IEEE TMI 1982. The volume is cut into slabs of one voxel along the beam axis; a ray's integral is
the sum of bilinearly interpolated slab values times the length that the ray spends in a slab. Our cameras look
along an axis, so a slab's interpolation separates into one banded matrix for the rows and one for the columns,
and the whole projection is a batched matrix product. Outside the volume there is air.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.errors import UserError
from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Camera, Real, checked_view, spacing_xyz

# Weights are built for blocks of slabs: a block that stays in a CPU's cache is about twice as fast as all slabs
# at once, and bounds the memory on either device. Elements of one weight block.
_BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


def project(attenuation: Volume, spacing: Real | Sequence[Real], camera: Camera, view: str) -> Xray:
    """Line integrals of a volume as a camera sees it.

    Args:
        attenuation: [B, 1, D, H, W] LPS, linear attenuation in mm^-1; its centre is the isocentre.
        spacing: (x, y, z) mm, or one number.
        camera: the camera; its panel gives the image's pixels.
        view: "frontal" (rays along +y) or "lateral" (rays along +x).

    Returns:
        [B, 1, rows, cols], dimensionless. Computed in float32 (float64 for float64 input) even under autocast.

    Raises:
        UserError: the volume reaches the source or the panel.
    """
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
            _check_clearance(slabs.shape[0] * s_depth / 2, camera)
            depths = _centred(slabs.shape[0], s_depth, volume)
            # A slit camera's source moves with the row, so only a column takes its ray off the beam axis.
            off_axis = rows_mm[:, None] ** 2 * (camera.kind == "cone") + cols_mm**2
            length = s_depth * (1 + off_axis / camera.sid**2).sqrt()
        row_shrink, col_shrink = 1 / camera.row_magnification(depths), 1 / camera.magnification(depths)
        rows_at = row_shrink[:, None] * (rows_mm / s_rows) + (slabs.shape[2] - 1) / 2
        cols_at = col_shrink[:, None] * (cols_mm / s_across) + (slabs.shape[3] - 1) / 2
        return (_sum_resampled_slabs(slabs, rows_at, cols_at) * length)[:, None]


def _sum_resampled_slabs(slabs: Tensor, rows_at: Tensor, cols_at: Tensor) -> Tensor:
    """Sum over slabs j of rows(j) @ slabs[j] @ cols(j).T: [J, B, K, I], [J, R], [J, C] -> [B, R, C]."""
    _, batch, height, width = slabs.shape
    image = slabs.new_zeros(())
    for block in _blocks(slabs, max(height * rows_at.shape[1], width * cols_at.shape[1])):
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


def _blocks(slabs: Tensor, elements_per_slab: int) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS.get(slabs.device.type, 2**22) // elements_per_slab)
    return (slice(start, start + size) for start in range(0, slabs.shape[0], size))


def _centred(count: int, step: Real, like: Tensor) -> Tensor:
    """Positions of ``count`` centres ``step`` apart around 0, mm."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2) * step


def _check_clearance(half_depth: float, camera: Camera) -> None:
    if half_depth >= camera.sad or half_depth > camera.sid - camera.sad:
        raise UserError(
            f"the volume reaches {half_depth:g} mm from its centre, and the camera's source stands at "
            f"{camera.sad:g} mm and its panel at {camera.sid - camera.sad:g} mm; crop it or move the camera"
        )


def mean_projections(
    volume: Float[Tensor, "b 1 d h w"],
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 d w"], Float[Tensor, "b 1 d h"]]:
    """Means along each axis: axial (over z), coronal (over y), sagittal (over x). Keeps the unit."""
    return volume.mean(2), volume.mean(3), volume.mean(4)
