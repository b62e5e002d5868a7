"""A 3D U-Net that works on patches of two voxels a side: an eighth of the voxels, with wider features for each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from diffux2ct.errors import UserError
from diffux2ct.models.denoiser import UNet3d
from diffux2ct.models.layers.blocks import Conv3d
from diffux2ct.models.layers.layout import channels_last_3d, concatenate

_PATCH = 2


class PatchUNet3d(nn.Module):
    """`UNet3d` on patches; the finest condition enters it as patches too, and the result through a convolution.

    Convolutions at full size cost most of a U-Net and give least: here the finest stage works at half size, and what
    is left at full size is one 3-wide convolution of the finest condition, which is added to the result.

    Args:
        channels, num_blocks, num_heads, window_size, dropout, checkpoint_stages: of the U-Net, whose stage i works at
            size / 2^(i + 1).
        condition_channels: of h^(1..N + 1), finest (full size) first: one more than ``channels``.
        in_channels: of the volume, 0 where there is none.
        coordinates: three more channels, each voxel's place from -1 to 1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        condition_channels: Sequence[int],
        num_blocks: int = 1,
        num_heads: int = 4,
        window_size: int = 8,
        dropout: float = 0.0,
        in_channels: int = 1,
        coordinates: bool = True,
        checkpoint_stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.coordinates = in_channels, coordinates
        fine, *coarser = condition_channels
        self.unet = UNet3d(
            channels,
            num_blocks,
            coarser,
            num_heads,
            window_size,
            dropout,
            in_channels=_PATCH**3 * (in_channels + fine + 3 * coordinates),
            out_channels=_PATCH**3,
            checkpoint_stages=checkpoint_stages,
        )
        self.fine = Conv3d(fine, 1, 3, padding=1)
        for parameter in self.fine.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "b i d h w"], t: Shaped[Tensor, " b"], conditions: Sequence[Tensor]
    ) -> Float[Tensor, "b 1 d h w"]:
        """A volume, its step t and h^(i), finest first -> the prediction."""
        if any(side % _PATCH for side in x.shape[2:]):
            raise UserError(f"dataset.size={max(x.shape[2:])}: choose a size divisible by {_PATCH}")
        fine, *coarser = conditions
        seen = [fine, x.to(fine.dtype)]
        if self.coordinates:
            seen.append(places(fine))
        patches = channels_last_3d(to_patches(concatenate(*seen)))
        return from_patches(self.unet(patches, t, coarser)) + self.fine(fine).float()


def places(like: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b 3 d h w"]:
    """Each voxel's z, y and x, from -1 to 1."""
    axes = [torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype) for side in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(like), -1, -1, -1, -1)


def to_patches(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b p d2 h2 w2"]:
    """Patches of two voxels a side as channels: [b, c, 2 d, 2 h, 2 w] -> [b, 8 c, d, h, w]."""
    b, c, d, h, w = x.shape
    blocks = x.reshape(b, c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(b, 8 * c, d // 2, h // 2, w // 2)


def from_patches(x: Float[Tensor, "b p d h w"]) -> Float[Tensor, "b c d2 h2 w2"]:
    """Inverse of `to_patches`."""
    b, p, d, h, w = x.shape
    blocks = x.reshape(b, p // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(b, p // 8, 2 * d, 2 * h, 2 * w)
