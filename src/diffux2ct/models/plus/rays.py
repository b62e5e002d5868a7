"""Features of an X-ray's plane at the voxels of a cube, sampled along the rays of the case's own camera.

A camera enters as four numbers, ``Camera.panel_map``: a voxel's row on the panel depends on its depth and its z alone,
and its column on its depth and its place across. Bilinear sampling therefore factors into one product with a matrix
per depth for the rows and one for the columns, equal to ``grid_sample``. On a CPU it takes 0.6 to 1.6 times as long
(``benchmarks/lifting_cpu.csv``); on CUDA its gradient is deterministic, which that of ``grid_sample`` is not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.models.layers.blocks import without_autocast
from diffux2ct.xray.pose import in_named_view, view_angle

RAY_AXIS = {"frontal": 3, "lateral": 4}  # of [b, c, D, H, W]: y and x
PARALLEL = (1.0, 0.0, 1.0, 0.0)
"""``panel_map`` of parallel rays with a pixel a voxel: sampling is broadcasting."""


def interpolation(
    scale: float, slope: float, size: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "depth voxel pixel"]:
    """Weights of linear interpolation from a panel's pixels, at each depth, for voxels across.

    A voxel at fraction p of half the cube's side and depth d appears at fraction p * scale / (1 + slope * d) of half
    the panel. Voxels that project beyond the panel have weights of 0.
    """
    centres = (torch.arange(size, device=device, dtype=dtype) * 2 + 1) / size - 1
    seen = centres * (scale / (1 + slope * centres[:, None]))  # [depth, voxel]
    pixel = (seen + 1) * (size / 2) - 0.5
    return (1 - (pixel[..., None] - torch.arange(size, device=device, dtype=dtype)).abs()).clamp(min=0)


def along_rays(
    planes: Float[Tensor, "b c k v u"], camera: Float[Tensor, "b 4"] | None, view: str
) -> Float[Tensor, "b c d h w"]:
    """A plane per depth [b, c, depths, rows, columns] at the voxels of the cube, as the view's rays reach them.

    ``depths`` is the number of voxels along the view, or 1 for the same plane at each. camera: ``panel_map`` of each
    sample, on the CPU; None: parallel. A view that is neither frontal nor lateral is lifted as the frontal one of the
    turned patient, which leaves it to `turned` to turn the result.
    """
    axis = RAY_AXIS[in_named_view(view, None)[0]]
    if camera is None or bool((camera == camera.new_tensor(PARALLEL)).all()):
        return planes.expand(-1, -1, planes.shape[3], -1, -1).movedim(2, axis)
    if bool((camera != camera[:1]).any()):
        pairs = zip(planes.split(1), camera.split(1), strict=True)
        return torch.cat([along_rays(plane, own, view) for plane, own in pairs])
    row_scale, row_slope, col_scale, col_slope = camera[0].tolist()
    batch, channels, depths, size, _ = planes.shape
    with without_autocast(planes.device.type):
        rows = interpolation(row_scale, row_slope, size, planes.device, torch.float32).to(planes.dtype)
        cols = interpolation(col_scale, col_slope, size, planes.device, torch.float32).to(planes.dtype)
    # Rows first: [depth, z, v] @ [depth or 1, v, (b c u)].
    stacked = planes.permute(2, 3, 0, 1, 4).reshape(depths, size, -1)
    stacked = rows.flatten(0, 1) @ stacked[0] if depths == 1 else torch.bmm(rows, stacked)
    # Then columns: [depth, (z b c), u] @ [depth, u, across].
    sampled = torch.bmm(stacked.reshape(size, -1, size), cols.transpose(1, 2))
    volume = sampled.reshape(size, size, batch, channels, size)  # depth, z, b, c, across
    return volume.permute(2, 3, 1, 0, 4) if axis == RAY_AXIS["frontal"] else volume.permute(2, 3, 1, 4, 0)


def turned(volume: Float[Tensor, "b c d h w"], view: str) -> Float[Tensor, "b c d h w"]:
    """A volume that was lifted along a view's rays, on the axes of the patient: turned about z by the view's angle.

    Frontal and lateral views lie on them already. Bilinear in each axial plane, and exact at multiples of 90 degrees.
    The corners of the cube that the lifted one does not reach are 0.
    """
    if view in RAY_AXIS:
        return volume
    quarters, rest = divmod(view_angle(view), 90)
    if not rest:
        return torch.rot90(volume, int(quarters), (3, 4))
    cosine, sine = math.cos(math.radians(view_angle(view))), math.sin(math.radians(view_angle(view)))
    centre = (torch.arange(volume.shape[-1], device=volume.device, dtype=torch.float32) * 2 + 1) / volume.shape[-1] - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    places = torch.stack((cosine * x - sine * y, sine * x + cosine * y), -1).expand(len(volume), -1, -1, -1)
    with without_autocast(volume.device.type):
        planes = F.grid_sample(volume.flatten(1, 2).float(), places, align_corners=False)
    return planes.to(volume.dtype).unflatten(1, volume.shape[1:3])
