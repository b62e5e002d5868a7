"""The parts of X2CT-GAN (Ying et al., CVPR 2019): dense 2D encoder, links from 2D to 3D, upsampling blocks.

Wired after the paper and the layer table of docs/method.md; the official code is GPL, and none of it is here.
Instance norm has no weights and uses each sample's own statistics, in training and at test (as the official test does).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffux2ct.models.layers.blocks import CONV
from diffux2ct.types import FeatureVolume, Plane, Xray

NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BASE = 4  # voxels per side of the coarsest features
_BOTTLENECK = 4  # channels between the two convolutions of a dense layer, in growths


def norm_act(dims: int, channels: int) -> list[nn.Module]:
    """Instance norm without weights, ReLU."""
    return [NORM[dims](channels), nn.ReLU()]


def conv_norm_act(dims: int, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Convolution that keeps the size, instance norm, ReLU."""
    conv = CONV[dims](in_channels, out_channels, kernel, padding=kernel // 2)
    return nn.Sequential(conv, *norm_act(dims, out_channels))


def normal_init(network: nn.Module, std: float = 0.02) -> None:
    """Weights from N(0, std^2), biases 0: what the official code starts from."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DenseLayer(nn.Module):
    """IN, ReLU, 1-wide convolution to 4 x growth; IN, ReLU, 3-wide convolution to growth; beside its input."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        inner = _BOTTLENECK * growth
        self.layers = nn.Sequential(
            *norm_act(2, in_channels),
            nn.Conv2d(in_channels, inner, 1),
            *norm_act(2, inner),
            nn.Conv2d(inner, growth, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "b _ r s"]) -> Float[Tensor, "b _ r s"]:
        """[b, in, r, s] -> [b, in + growth, r, s]."""
        return torch.cat((x, self.layers(x)), dim=1)


class DenseEncoder(nn.Module):
    """An X-ray -> features of every size down to 8, and one code.

    A 7-wide stem; then per level IN, ReLU, convolution of stride 2 and a dense block, whose channels a 1-wide
    convolution halves on the way to the next level; the last level (4 x 4) is averaged to the code instead.

    Attributes:
        skip_channels: of the features, finest first.
        code_channels: of the code.
    """

    def __init__(self, stem: int, growth: int, dense_layers: Sequence[int]):
        super().__init__()
        self.stem = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(1, stem, 7), *norm_act(2, stem))
        self.levels = nn.ModuleList()
        self.skip_channels: list[int] = []
        channels = stem
        for index, count in enumerate(dense_layers):
            self.skip_channels.append(channels)
            layers = [*norm_act(2, channels), nn.Conv2d(channels, channels, 3, stride=2, padding=1)]
            layers += [DenseLayer(channels + i * growth, growth) for i in range(count)]
            channels += count * growth
            if index < len(dense_layers) - 1:
                layers += [*norm_act(2, channels), nn.Conv2d(channels, channels // 2, 1)]
                channels //= 2
            self.levels.append(nn.Sequential(*layers))
        self.code_channels = channels

    def forward(self, xray: Xray) -> tuple[list[Tensor], Float[Tensor, "b c"]]:
        """[b, 1, n, n] -> features [b, skip_channels[i], n / 2^i, n / 2^i] and the code."""
        skips = [self.stem(xray)]
        for level in self.levels:
            skips.append(level(skips[-1]))
        return skips[:-1], skips.pop().mean((2, 3))


class CodeLink(nn.Module):
    """Connection A: the code through a linear layer, dropout and ReLU to the coarsest volume, 4 x 4 x 4."""

    def __init__(self, code_channels: int, out_channels: int):
        super().__init__()
        self.out_channels = out_channels
        self.linear = nn.Linear(code_channels, self.num_outputs)

    @property
    def num_outputs(self) -> int:
        """Length of the linear layer's output, and of a dropout mask."""
        return self.out_channels * BASE**3

    def forward(self, code: Float[Tensor, "b c"], mask: Float[Tensor, "b n"] | None = None) -> FeatureVolume:
        """The code, and the factors of dropout (0 or 1 / keep probability) -> [b, out, 4, 4, 4]."""
        x = self.linear(code)
        if mask is not None:
            x = x * mask.to(x.dtype)
        return x.relu().unflatten(1, (self.out_channels, BASE, BASE, BASE))


class PlaneLink(nn.Module):
    """Connection B: a plane compressed by a 1-wide convolution, repeated along the beam, smoothed by a 3D one."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.compress = conv_norm_act(2, in_channels, out_channels, kernel=1)
        self.smooth = conv_norm_act(3, out_channels, out_channels)

    def forward(self, plane: Plane) -> FeatureVolume:
        """[b, in, n, n] -> [b, out, n, n, n], the new axis (the beam's) first."""
        x = self.compress(plane)
        return self.smooth(x[:, :, None].expand(-1, -1, x.shape[-1], -1, -1))


def upsampling(in_channels: int, out_channels: int, num_convs: int) -> nn.Sequential:
    """Convolutions of 3, then a transposed one that doubles every side: [b, in, n, n, n] -> [b, out, 2n, 2n, 2n]."""
    up = nn.ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    convs = [conv_norm_act(3, in_channels, in_channels) for _ in range(num_convs)]
    return nn.Sequential(*convs, up, *norm_act(3, out_channels))
