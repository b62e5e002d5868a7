"""X2CT-GAN (Ying et al., CVPR 2019): the two-view generator and the 3D patch discriminator.

Networks take and give our range [-1, 1]; inside they work on X2CT's [0, 1], which their ReLU output and the weights of
their losses are made for. docs/method.md has the layer table, the official counts and what differs.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffux2ct.errors import UserError
from diffux2ct.models.baselines.x2ct_blocks import (
    BASE,
    NORM,
    CodeLink,
    DenseEncoder,
    PlaneLink,
    conv_norm_act,
    normal_init,
    upsampling,
)
from diffux2ct.types import VIEWS, FeatureVolume, Volume, Xray, Xrays

_BRANCH_CONVS = 2  # convolutions of a branch and of the trunk between fusion and upsampling
_TRUNK_CONVS = 1
_LEAK = 0.2
# A branch's own order of the volume's axes: its beam first, then its image's rows and columns.
_TO_BRANCH = {"frontal": (0, 1, 3, 2, 4), "lateral": (0, 1, 4, 2, 3)}
_TO_VOLUME = {"frontal": (0, 1, 3, 2, 4), "lateral": (0, 1, 3, 4, 2)}


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], the range that X2CT-GAN's losses and their weights are stated for."""
    return (x + 1) / 2


class ViewBranch(nn.Module):
    """One view's encoder, its links to 3D, and its decoder up to the last fusion.

    ``channels``: of the volumes, finest first, one more than levels of the encoder.
    """

    def __init__(self, stem: int, growth: int, dense_layers: Sequence[int], channels: Sequence[int]):
        super().__init__()
        self.encoder = DenseEncoder(stem, growth, dense_layers)
        self.code_link = CodeLink(self.encoder.code_channels, channels[-1])
        coarse_first = list(zip(self.encoder.skip_channels, channels[:-1], strict=True))[::-1]
        self.plane_links = nn.ModuleList(PlaneLink(skip, c) for skip, c in coarse_first)
        self.merges = nn.ModuleList(conv_norm_act(3, 2 * c, c) for _, c in coarse_first)
        # The coarsest volume has no skip and is upsampled as it is.
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.ups = nn.ModuleList(upsampling(a, b, _BRANCH_CONVS if i else 0) for i, (a, b) in enumerate(pairs))

    def encode(self, xray: Xray, mask: Tensor | None) -> tuple[FeatureVolume, list[Tensor]]:
        """An X-ray in [0, 1] -> the coarsest volume, and the skips' volumes, coarsest first."""
        planes, code = self.encoder(xray)
        skips = [link(plane) for link, plane in zip(self.plane_links, reversed(planes), strict=True)]
        return self.code_link(code, mask), skips


class X2ctGenerator(nn.Module):
    """Two X-rays -> CT. Connection C ties the branches: at every size they are averaged in the volume's axes, and
    each goes on from the average, while a trunk that has no encoder turns the averages into the CT.

    Args:
        size: voxels per side, 4 times a power of two; it sets the number of levels (128 has 5).
        stem: channels of the encoder's first convolution.
        growth: of the dense layers.
        dense_layers: dense layers per level, finest first; levels beyond those of a small ``size`` are not used.
        channels: of the volumes, finest first, one more than ``dense_layers``; likewise.
        dropout: of Connection A.
    """

    def __init__(
        self,
        size: int,
        stem: int = 64,
        growth: int = 32,
        dense_layers: Sequence[int] = (6, 12, 24, 16, 6),
        channels: Sequence[int] = (16, 16, 32, 64, 128, 256),
        dropout: float = 0.5,
    ):
        super().__init__()
        self.size = size
        levels = num_levels(size, len(dense_layers))
        channels = list(channels)[: levels + 1]
        self.branches = nn.ModuleDict(
            {view: ViewBranch(stem, growth, list(dense_layers)[:levels], channels) for view in VIEWS}
        )
        self.dropout = dropout
        trunk = [upsampling(channels[-1], channels[-2], 0)]
        for a, b in zip(channels[-2:0:-1], channels[-3::-1], strict=True):
            trunk.append(nn.Sequential(conv_norm_act(3, 2 * a, a), *upsampling(a, b, _TRUNK_CONVS)))
        finest = channels[0]
        convs = [conv_norm_act(3, finest, finest) for _ in range(_TRUNK_CONVS)]
        trunk.append(nn.Sequential(conv_norm_act(3, 2 * finest, finest), *convs))
        self.trunk = nn.ModuleList(trunk)
        self.out = nn.Conv3d(finest, 1, 7, padding=3)
        normal_init(self)

    def forward(self, xrays: Xrays, z: Float[Tensor, "b 2 n"] | None = None) -> Volume:
        """X-rays in [-1, 1], and dropout's factors (see `sample_perturbation`) -> CT, at least -1, not clamped above.

        Without ``z`` nothing is dropped, in training too.
        """
        inner: dict[str, Tensor] = {}
        skips: dict[str, list[Tensor]] = {}
        for i, view in enumerate(VIEWS):
            mask = None if z is None else z[:, i]
            inner[view], skips[view] = self._branch(view).encode(to_unit(xrays[view]), mask)
        trunk: Tensor | None = None
        for level, stage in enumerate(self.trunk):
            if level:
                both = {v: torch.cat((inner[v], skips[v][level - 1]), dim=1) for v in VIEWS}
                inner = {v: self._branch(v).merges[level - 1](both[v]) for v in VIEWS}
            average = torch.stack([inner[v].permute(_TO_VOLUME[v]) for v in VIEWS]).mean(0)
            trunk = stage(average if trunk is None else torch.cat((average, trunk), dim=1))
            if level < len(self.trunk) - 1:
                ups = {v: self._branch(v).ups[level] for v in VIEWS}
                inner = {v: ups[v](average.permute(_TO_BRANCH[v])) for v in VIEWS}
        assert trunk is not None
        return 2 * self.out(trunk).float().relu() - 1

    def sample_perturbation(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """Dropout's factors for Connection A, [batch, view, n]: 0, or 1 / keep probability; None without dropout.

        A draw of its own, so that a sample's dropout follows from its seed, whatever the batch and the processes.
        """
        if self.dropout == 0:
            return None
        shape = (batch, len(VIEWS), self._branch(VIEWS[0]).code_link.num_outputs)
        kept = torch.rand(shape, generator=generator, device=device) >= self.dropout
        return kept.float() / (1 - self.dropout)

    def _branch(self, view: str) -> ViewBranch:
        return cast(ViewBranch, self.branches[view])


def num_levels(size: int, most: int) -> int:
    """Number of times that ``size`` halves down to 4; UserError where it does not, or more than ``most`` times."""
    levels = size.bit_length() - BASE.bit_length()
    if levels < 1 or size != BASE << levels:
        raise UserError(f"dataset.size={size}: X2CT-GAN needs 4 times a power of two; choose 32, 64, 128, ...")
    if levels > most:
        raise UserError(f"dataset.size={size}: needs {levels} levels and the lists of sizes have {most}; lengthen them")
    return levels


def _padded_conv(in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> list[nn.Module]:
    """Convolution of 4 over two zeros on every side.

    Padded beforehand, because oneDNN's weight gradient in bf16 is garbage where an input is smaller than the kernel
    (torch 2.13), as the last ones are at 16^3.
    """
    return [nn.ConstantPad3d(2, 0.0), nn.Conv3d(in_channels, out_channels, 4, stride=stride, bias=bias)]


class PatchDiscriminator3d(nn.Module):
    """Scores patches of a CT, given both X-rays spread along their beams: 1 is real, 0 is generated (least squares).

    Convolutions of 4: all of stride 2 but the last of ``channels`` and the score's. LReLU 0.2; instance norm from the
    second on.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512)):
        super().__init__()
        layers: list[nn.Module] = []
        below = 1 + len(VIEWS)
        for i, width in enumerate(channels):
            stride = 1 if i == len(channels) - 1 else 2
            # Before an instance norm a bias has no effect.
            layers += _padded_conv(below, width, stride, bias=i == 0)
            layers += [NORM[3](width)] if i else []
            layers.append(nn.LeakyReLU(_LEAK))
            below = width
        layers += _padded_conv(below, 1)
        self.layers = nn.Sequential(*layers)
        normal_init(self)

    def forward(self, volume: Volume, xrays: Xrays) -> Float[Tensor, "b 1 m m m"]:
        """A CT and its X-rays in [-1, 1] -> scores [b, 1, m, m, m]; m is 19 at 128^3, 7 at 32^3."""
        frontal = xrays["frontal"][:, :, :, None, :].expand_as(volume)
        lateral = xrays["lateral"][:, :, :, :, None].expand_as(volume)
        return self.layers(to_unit(torch.cat((frontal, lateral, volume), dim=1)))
