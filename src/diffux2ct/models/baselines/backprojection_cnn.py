"""The plainest regressor: smear both X-rays back along their rays, then a few 3D convolutions.

The floor for anything that claims to learn where structures lie in depth, and the worked example of docs/extending.md.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from diffux2ct.models.layers.blocks import conv_norm_act
from diffux2ct.types import Volume, Xrays


class BackprojectionCnn(nn.Module):
    """X-rays -> CT by convolutions of their parallel back-projections, all at full resolution.

    Args:
        channels: of every hidden convolution.
        num_layers: how many of them, each 3x3x3.
    """

    def __init__(self, channels: int = 32, num_layers: int = 4) -> None:
        super().__init__()
        widths = [2, *[channels] * num_layers]
        self.layers = nn.Sequential(*(conv_norm_act(3, a, b) for a, b in pairwise(widths)))
        self.out = nn.Conv3d(channels, 1, 3, padding=1)

    def forward(self, xrays: Xrays) -> Volume:
        """X-rays "frontal" [b, 1, D, W] and "lateral" [b, 1, D, H] in [-1, 1] -> CT [b, 1, D, H, W], not clamped."""
        return self.out(self.layers(backproject(xrays)))


def backproject(xrays: Xrays) -> Tensor:
    """Each view repeated along its missing axis, as two channels [b, 2, D, H, W] (parallel beams)."""
    frontal, lateral = xrays["frontal"], xrays["lateral"]
    shape = (*frontal.shape[:3], lateral.shape[3], frontal.shape[3])
    return torch.cat((frontal[:, :, :, None, :].expand(shape), lateral[:, :, :, :, None].expand(shape)), dim=1)
