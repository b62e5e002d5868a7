"""The implicit neural decoder (Sec. 3.2, Eq. 6): tri-plane features -> a feature volume."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int, int]


class ImplicitDecoder(nn.Module):
    """Eq. 6: the sum of three bilinear plane samples at each voxel centre, through Linear-SiLU-Linear.

    No coordinates enter the MLP. The SiLU is not optional: without it h would be a plain sum of three plane
    functions, and the planes could never interact.

    Computed in a cheaper order, equal but for rounding. (1) Where plane and grid have the same resolution, a
    voxel centre projects onto a pixel centre, so sampling is broadcasting; elsewhere `F.interpolate` resamples
    the plane once. (2) The first Linear commutes with the sum and the sampling, so it runs on the planes
    (O(n^2) pixels) and not on the voxels (O(n^3)).
    """

    def __init__(self, plane_channels: int = 64, hidden: int = 64, out_channels: int = 32):
        super().__init__()
        self.out_channels = out_channels
        self.linear1 = nn.Linear(plane_channels, hidden)
        self.linear2 = nn.Linear(hidden, out_channels)

    def forward(
        self,
        zx: Float[Tensor, "b c d w"],
        zy: Float[Tensor, "b c d h"],
        yx: Float[Tensor, "b c h w"],
        grid: Grid | None = None,
    ) -> Float[Tensor, "b out gd gh gw"]:
        """Three planes -> [b, out_channels, *grid]; grid (D, H, W) defaults to the planes' own sides."""
        depth, height, width = grid or (zx.shape[2], yx.shape[2], zx.shape[3])
        front = self._plane(zx, (depth, width))[:, :, None, :]
        side = self._plane(zy, (depth, height))[:, :, :, None]
        axial = self._plane(yx, (height, width))[:, None, :, :]
        # Channels last: the second Linear is one matrix product, and the result is channels_last_3d already.
        return rearrange(self.linear2(F.silu(front + side + axial)), "b d h w c -> b c d h w")

    def _plane(self, plane: Tensor, size: tuple[int, int]) -> Tensor:
        """The first Linear (with a third of its bias) on a plane resampled to `size`: [b, r, s, hidden]."""
        plane = F.linear(rearrange(plane, "b c r s -> b r s c"), self.linear1.weight, self.linear1.bias / 3)
        if plane.shape[1:3] == size:
            return plane
        plane = rearrange(plane, "b r s c -> b c r s")
        return rearrange(F.interpolate(plane, size, mode="bilinear", align_corners=False), "b c r s -> b r s c")
