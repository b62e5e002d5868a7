"""ICM-Reg: the implicit conditioning mechanism at four scales, and a 3D decoder instead of a diffusion model.

The paper's regression baseline (Sec. 4.2 and supplement). Its figure is missing from the published text, so the
decoder's widths are ours (docs/method.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffux2ct.models.conditioning import Conditioning
from diffux2ct.models.layers.blocks import two_convs
from diffux2ct.types import Plane, Volume, Xrays


class FeatureDecoder3d(nn.Module):
    """h^(1..N), finest first -> a volume at the size of h^(1).

    From the coarsest scale: two convolutions; then per finer scale trilinear x2, concatenation of h^(i), and two
    convolutions of h^(i)'s width; then a convolution to one channel.
    """

    def __init__(self, channels: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        fine_first = list(channels)
        below = fine_first.pop()
        self.coarsest = two_convs(3, below, below, dropout)
        self.stages = nn.ModuleList()
        while fine_first:
            width = fine_first.pop()
            self.stages.append(two_convs(3, below + width, width, dropout))
            below = width
        self.out = nn.Conv3d(below, 1, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Volume:
        """[b, channels[i], D, H, W] / 2^i, finest first -> [b, 1, D, H, W]."""
        *finer, coarsest = features
        x = self.coarsest(coarsest)
        for stage in self.stages:
            h = finer.pop()
            x = F.interpolate(x, size=h.shape[2:], mode="trilinear", align_corners=False)
            x = stage(torch.cat((x, h.to(x.dtype)), dim=1))
        return self.out(x)


class IcmReg(nn.Module):
    """X-rays -> conditions -> CT. Any conditioning will do; the paper's is implicit, with four scales.

    dropout: of the decoder; the conditioning has its own.
    """

    def __init__(self, conditioning: Conditioning, dropout: float = 0.0) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.size = getattr(conditioning, "size", None)
        self.decoder = FeatureDecoder3d(conditioning.channels, dropout)

    def forward(self, xrays: Xrays, z: Plane | None = None) -> Volume:
        """X-rays in [-1, 1], and the z of Eq. 5 (see `Conditioning`) -> CT, not clamped."""
        return self.decoder(self.conditioning(xrays, z))

    def sample_perturbation(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        return self.conditioning.sample_perturbation(batch, generator, device)
