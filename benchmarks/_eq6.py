"""The oracle of `ImplicitDecoder`, for its benchmark and its test."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.models.implicit_decoder import Grid, ImplicitDecoder


def decode_by_grid_sample(
    decoder: ImplicitDecoder,
    zx: Float[Tensor, "b c d w"],
    zy: Float[Tensor, "b c d h"],
    yx: Float[Tensor, "b c h w"],
    grid: Grid | None = None,
) -> Float[Tensor, "b out gd gh gw"]:
    """Eq. 6 as it is written: sample, sum, MLP at every voxel."""
    depth, height, width = grid or (zx.shape[2], yx.shape[2], zx.shape[3])
    z, y, x = torch.meshgrid(*(_centres(n, zx) for n in (depth, height, width)), indexing="ij")

    def sample(plane: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        points = torch.stack((cols, rows), dim=-1).reshape(1, 1, -1, 2).expand(plane.shape[0], -1, -1, -1)
        return F.grid_sample(plane, points, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]

    features = sample(zx, z, x) + sample(zy, z, y) + sample(yx, y, x)
    h = decoder.linear2(F.silu(decoder.linear1(features.transpose(1, 2))))
    return h.transpose(1, 2).reshape(h.shape[0], -1, depth, height, width)


def _centres(n: int, like: Tensor) -> Tensor:
    """Voxel centres (2 i + 1) / n - 1 of an axis over [-1, 1]."""
    return (2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1
