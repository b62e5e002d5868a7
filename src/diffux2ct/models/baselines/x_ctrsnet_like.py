"""X-CTRSNet-like: 2D features of each X-ray, their channels split into depths along its rays, then a 3D U-Net.

X-CTRSNet's own network (SpaDRNet) is not public: this is no reproduction of it (docs/method.md).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffux2ct.errors import UserError
from diffux2ct.models.baselines.icm_reg import FeatureDecoder3d
from diffux2ct.models.layers.blocks import Downsample, conv_norm_act, two_convs
from diffux2ct.models.triplane import PlaneEncoder
from diffux2ct.types import Volume, Xray, Xrays

_RAY_AXIS = {"frontal": 3, "lateral": 4}  # of [b, c, D, H, W]: y and x


class ChannelsToDepth(nn.Module):
    """A plane's channels become depths along its rays: each pixel fills the line of voxels that it sees, no other.

    A 1-wide convolution gives ``out_channels * num_depths`` channels; channel ``c * num_depths + k`` is channel c at
    the k-th voxel of the ray.
    """

    def __init__(self, view: str, in_channels: int, out_channels: int, num_depths: int) -> None:
        super().__init__()
        self.axis, self.num_depths = _RAY_AXIS[view], num_depths
        self.conv = nn.Conv2d(in_channels, out_channels * num_depths, 1)

    def forward(self, plane: Float[Tensor, "b c d n"]) -> Float[Tensor, "b _ d _ _"]:
        """[b, c, D, W] (frontal) or [b, c, D, H] (lateral) -> [b, out, D, H, W]."""
        depths = self.conv(plane).unflatten(1, (-1, self.num_depths))  # [b, out, depth, D, n]
        return depths.movedim(2, self.axis)


class ViewLift(nn.Module):
    """One X-ray -> a feature volume per scale, in CT coordinates: a 2D encoder, and `ChannelsToDepth` at each level."""

    def __init__(
        self,
        view: str,
        size: int,
        plane_channels: int,
        encoder_channels: Sequence[int],
        num_blocks: int,
        channels: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = conv_norm_act(2, 1, plane_channels)
        self.encoder = PlaneEncoder(plane_channels, encoder_channels, num_blocks, dropout)
        self.lifts = nn.ModuleList(
            ChannelsToDepth(view, planes, width, size // 2**level)
            for level, (planes, width) in enumerate(zip(encoder_channels, channels, strict=True))
        )

    def forward(self, xray: Xray) -> list[Tensor]:
        """[b, 1, D, n] -> [b, channels[i], D, H, W] / 2^i, finest first."""
        planes = self.encoder(self.stem(xray))
        return [lift(plane) for lift, plane in zip(self.lifts, planes, strict=True)]


class XCtrsNetLike(nn.Module):
    """X-rays -> CT, after the idea of X-CTRSNet's SpaDRNet. NOT a reproduction: that network is not public.

    Known of it is a 2D encoder per view whose channels become the third dimension, a 3D network over both, and L1.
    All the rest is ours: a 2D encoder per view with weights of its own, channels split into depths at every level
    (`ChannelsToDepth`), both views' volumes side by side on the CT's axes, and a 3D U-Net that takes them in at every
    scale (decoder as ICM-Reg's).

    Args:
        size: voxels per side, a multiple of 2^(levels - 1): it fixes the number of depths.
        plane_channels, encoder_channels, num_blocks: of the 2D encoders; a level for each entry.
        view_channels: of one view's volume at each level.
        volume_channels: of the U-Net at each level.
        dropout: before the second convolution of each block.
    """

    def __init__(
        self,
        size: int,
        plane_channels: int = 64,
        encoder_channels: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 2,
        view_channels: Sequence[int] = (8, 16, 32, 64),
        volume_channels: Sequence[int] = (32, 64, 128, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_levels = len(encoder_channels)
        if not num_levels == len(view_channels) == len(volume_channels):
            raise UserError(
                f"model.network: {num_levels} encoder_channels, {len(view_channels)} view_channels and "
                f"{len(volume_channels)} volume_channels; give as many of each, one for every level"
            )
        if size % 2 ** (num_levels - 1):
            raise UserError(
                f"dataset.size={size}: x_ctrsnet_like halves it {num_levels - 1} times; choose a multiple of "
                f"{2 ** (num_levels - 1)}, or fewer levels"
            )
        self.size = size
        self.frontal, self.lateral = (
            ViewLift(view, size, plane_channels, encoder_channels, num_blocks, view_channels, dropout)
            for view in _RAY_AXIS
        )
        self.stages, self.downsample = nn.ModuleList(), nn.ModuleList()
        below = 0
        for view_width, width in zip(view_channels, volume_channels, strict=True):
            self.stages.append(two_convs(3, below + 2 * view_width, width, dropout))
            below = width
        self.downsample.extend(Downsample(3, width, width) for width in volume_channels[:-1])
        self.decoder = FeatureDecoder3d(volume_channels, dropout)

    def forward(self, xrays: Xrays) -> Volume:
        """X-rays in [-1, 1] -> CT, not clamped."""
        lifted = zip(self.frontal(xrays["frontal"]), self.lateral(xrays["lateral"]), strict=True)
        features: list[Tensor] = []
        for level, (stage, views) in enumerate(zip(self.stages, lifted, strict=True)):
            above = [self.downsample[level - 1](features[-1])] if features else []
            features.append(stage(torch.cat((*above, *views), dim=1)))
        return self.decoder(features)
