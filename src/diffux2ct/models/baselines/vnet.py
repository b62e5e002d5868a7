"""V-Net, the segmentation network of Table 2 (Milletari et al., 3DV 2016), a stage for each entry of its widths."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffux2ct.arguments import check_choice
from diffux2ct.errors import UserError
from diffux2ct.models.layers.blocks import Conv3d
from diffux2ct.models.layers.normalization import GroupNorm
from diffux2ct.types import FeatureVolume, Volume

NORMS = ("none", "group")


class ResidualStage(nn.Module):
    """Convolutions of 5^3 with PReLU between; the stage's input is added to the last one's output, before its PReLU."""

    def __init__(self, channels: int, num_convs: int, norm: str = "none", in_channels: int | None = None):
        super().__init__()
        first = in_channels or channels
        self.convs = nn.ModuleList(
            _convolution(width, channels, norm) for width in [first] + [channels] * (num_convs - 1)
        )
        self.acts = nn.ModuleList(nn.PReLU(channels) for _ in self.convs)

    def forward(self, x: FeatureVolume) -> FeatureVolume:
        """[b, c, d, h, w] -> [b, channels, d, h, w]; an input of one channel is added to all of them."""
        out = x
        for conv, act in zip(self.convs[:-1], self.acts[:-1], strict=True):
            out = act(conv(out))
        return self.acts[-1](self.convs[-1](out) + x)


class VNet(nn.Module):
    """Volume -> logits of classes: residual stages, strided convolutions down, transposed ones up, skips between.

    The defaults are those of the authors' released network (faustomilletari/VNet, the Caffe prototxt), which has no
    normalisation and one PReLU slope a channel.

    Args:
        num_classes: background included.
        channels: of the stages on the way down, finest first. On the way up a stage is twice as wide as the skip that
            it takes in, since it works on skip and upsampled features side by side.
        num_convs: convolutions of each stage down; up, a stage has as many as the stage beside it.
        norm: "none", as published, or "group" after each convolution.
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        num_convs: Sequence[int] = (1, 1, 2, 3, 3),
        norm: str = "none",
    ):
        super().__init__()
        check_choice("model.network.norm", norm, NORMS)
        if len(channels) != len(num_convs):
            raise UserError(
                f"model.network: {len(channels)} channels and {len(num_convs)} num_convs; give one of each a stage"
            )
        self.stride = 2 ** (len(channels) - 1)
        self.first = ResidualStage(channels[0], num_convs[0], norm, in_channels=1)
        self.down, self.left = nn.ModuleList(), nn.ModuleList()
        for above, width, count in zip(channels, channels[1:], num_convs[1:], strict=False):
            self.down.append(nn.Sequential(nn.Conv3d(above, width, 2, stride=2), nn.PReLU(width)))
            self.left.append(ResidualStage(width, count, norm))
        self.up, self.right = nn.ModuleList(), nn.ModuleList()
        below = channels[-1]
        for skip, count in zip(reversed(channels[:-1]), reversed(num_convs[:-1]), strict=True):
            self.up.append(nn.Sequential(nn.ConvTranspose3d(below, skip, 2, stride=2), nn.PReLU(skip)))
            self.right.append(ResidualStage(2 * skip, count, norm))
            below = 2 * skip
        self.out = nn.Sequential(
            nn.Conv3d(below, num_classes, 5, padding=2), nn.PReLU(num_classes), nn.Conv3d(num_classes, num_classes, 1)
        )

    def forward(self, volume: Volume) -> Float[Tensor, "b k d h w"]:
        """[b, 1, D, H, W] in [-1, 1] -> logits [b, num_classes, D, H, W]. UserError where a side cannot be halved."""
        if any(side % self.stride for side in volume.shape[2:]):
            raise UserError(
                f"V-Net: volumes of {tuple(volume.shape[2:])} voxels cannot be halved down to its last stage; "
                f"choose a dataset.size that is a multiple of {self.stride}"
            )
        features = [self.first(volume)]
        for down, stage in zip(self.down, self.left, strict=True):
            features.append(stage(down(features[-1])))
        x = features.pop()
        for up, stage in zip(self.up, self.right, strict=True):
            x = stage(torch.cat((up(x), features.pop()), dim=1))
        return self.out(x)


def _convolution(in_channels: int, out_channels: int, norm: str) -> nn.Module:
    conv = Conv3d(in_channels, out_channels, 5, padding=2)
    return nn.Sequential(conv, GroupNorm(out_channels)) if norm == "group" else conv
