"""The tri-plane decoupling generator (Sec. 3.2, Eq. 3-5): two X-rays -> three planes at several resolutions.

Planes are named by the axes that they keep: `zx` (frontal; the paper's uw), `zy` (lateral; vw) and `yx` (uv),
the axial one that no X-ray shows. docs/method.md has the table of letters.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffux2ct.arguments import check_choice
from diffux2ct.errors import UserError
from diffux2ct.models.layers.blocks import Downsample, ResBlock, conv_norm_act, without_autocast
from diffux2ct.types import Plane

Planes = tuple[Tensor, Tensor, Tensor]  # (zx, zy, yx)

UV_FUSIONS = ("literal", "transpose", "axis")
FUSIONS = ("modulators", "mean", "resnet")


def shared(module: Callable[[Tensor], Tensor], planes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One module on several planes; in one batch where their shapes allow it."""
    if all(plane.shape == planes[0].shape for plane in planes):
        return module(torch.cat(tuple(planes))).chunk(len(planes))
    return tuple(module(plane) for plane in planes)


def sine_encoding_2d(channels: int, rows: int, cols: int) -> Float[Tensor, "1 c r s"]:
    """2D sin-cos position encoding: the first half of the channels encodes the row, the second the column."""
    if channels % 4:
        raise UserError(f"encoder_channels: the last, {channels}, must be a multiple of 4, for the 2D sine encoding")
    quarter = channels // 4
    rates = torch.exp(torch.arange(quarter) * (-math.log(10000.0) / quarter))

    def axis(n: int) -> Tensor:
        angles = torch.arange(n)[None, :] * rates[:, None]
        return torch.cat((angles.sin(), angles.cos()))

    by_row = axis(rows)[:, :, None].expand(-1, -1, cols)
    by_col = axis(cols)[:, None, :].expand(-1, rows, -1)
    return torch.cat((by_row, by_col))[None]


class InterleavedConv(nn.Module):
    """Each view receives the other's profile along z, the axis that they share; then one shared convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv_norm_act(2, 2 * channels, channels)

    def forward(
        self, front: Float[Tensor, "b c d w"], side: Float[Tensor, "b c d h"]
    ) -> tuple[Float[Tensor, "b c d w"], Float[Tensor, "b c d h"]]:
        """Stem features of both views -> the same shapes, each aware of the other."""
        front_profile = front.mean(dim=3, keepdim=True)  # over x: [b, c, d, 1]
        side_profile = side.mean(dim=3, keepdim=True)  # over y: [b, c, d, 1]
        front, side = (
            torch.cat((front, side_profile.expand(-1, -1, -1, front.shape[3])), dim=1),
            torch.cat((side, front_profile.expand(-1, -1, -1, side.shape[3])), dim=1),
        )
        zx, zy = shared(self.conv, (front, side))
        return zx, zy


class PlaneEncoder(nn.Module):
    """2D encoder, the same for both views: residual blocks per level, a convolution of stride 2 between."""

    def __init__(self, in_channels: int, channels: Sequence[int], num_blocks: int, dropout: float = 0.0):
        super().__init__()
        self.levels, self.downsample = nn.ModuleList(), nn.ModuleList()
        below = in_channels
        for i, width in enumerate(channels):
            widths = [below] + [width] * (num_blocks - 1)
            self.levels.append(nn.Sequential(*(ResBlock(2, w, width, dropout=dropout) for w in widths)))
            if i < len(channels) - 1:
                self.downsample.append(Downsample(2, width, width))
            below = width

    def forward(self, x: Plane) -> list[Tensor]:
        """[b, c, r, s] -> features per level, finest first."""
        features = []
        for i, level in enumerate(self.levels):
            x = level(x)
            features.append(x)
            if i < len(self.downsample):
                x = self.downsample[i](x)
        return features


class PlaneDecoder(nn.Module):
    """The light decoder, the same for all planes: bilinear x2, concatenate the skip, one residual block."""

    def __init__(self, channels: Sequence[int], out_channels: int, dropout: float = 0.0):
        super().__init__()
        *skips, bottom = channels
        self.bottom = ResBlock(2, bottom, out_channels, dropout=dropout)
        self.levels = nn.ModuleList(ResBlock(2, out_channels + skip, out_channels, dropout=dropout) for skip in skips)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder features, finest first -> decoded planes of every level, finest first."""
        u = self.bottom(features[-1])
        outputs = [u]
        for level, skip in zip(reversed(self.levels), reversed(features[:-1]), strict=True):
            u = F.interpolate(u, scale_factor=2.0, mode="bilinear", align_corners=False)
            u = level(torch.cat((u, skip), dim=1))
            outputs.append(u)
        return outputs[::-1]


def lay_out_axial(zx: Float[Tensor, "b c d w"], zy: Float[Tensor, "b c d h"], how: str) -> tuple[Tensor, Tensor]:
    """Each view's contribution to the axial plane, as [b, c, h, w] (or expandable to it).

    Eq. 4 adds maps over (x, z) and (y, z) and calls the result (x, y); the axes do not match. Readings:
    literal:   index by index as printed; z stands where the other axis should. Needs a cube.
    transpose: the lateral map transposed, so that each view at least keeps its own axis. Needs a cube.
    axis:      each view averaged over z and repeated over the other's axis; the only valid layout.
    """
    if how == "literal":  # (x, z) + (y, z), read as (x, y), transposed to (y, x): z rows become y rows
        return zx, zy
    if how == "transpose":
        return zx, zy.transpose(2, 3)
    return zx.mean(dim=2)[:, :, None, :], zy.mean(dim=2)[:, :, :, None]


class ViewModulators(nn.Module):
    """Eq. 3-4: channel weights from the view embeddings s1 = (1, 0, 1), s2 = (0, 1, 1), on the unit circle.

    The embeddings are constants, so the weights are too: they are learned per channel and do not see the
    input. The last bias starts at 1, away from |gamma| = 0 where the gradient dies.
    """

    delta = 1e-8

    def __init__(self, channels: int, hidden: int = 64):
        super().__init__()
        last1, last2 = nn.Linear(hidden, channels), nn.Linear(hidden, channels)
        nn.init.ones_(last1.bias)
        nn.init.ones_(last2.bias)
        self.mlp1 = nn.Sequential(nn.Linear(3, hidden), nn.SiLU(), last1)
        self.mlp2 = nn.Sequential(nn.Linear(3, hidden), nn.SiLU(), last2)
        self.register_buffer("s1", torch.tensor((1.0, 0.0, 1.0)), persistent=False)
        self.register_buffer("s2", torch.tensor((0.0, 1.0, 1.0)), persistent=False)

    def weights(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Eq. 3, in fp32 (delta vanishes in bf16)."""
        with without_autocast(str(self.s1.device.type)):
            gamma1, gamma2 = self.mlp1(self.s1).float(), self.mlp2(self.s2).float()
        scale = torch.rsqrt(gamma1**2 + gamma2**2 + self.delta)
        return gamma1.abs() * scale, gamma2.abs() * scale

    def forward(self, front: Tensor, side: Tensor) -> Tensor:
        """Eq. 4."""
        gamma1, gamma2 = (gamma.to(front.dtype)[:, None, None] for gamma in self.weights())
        return gamma1 * front + gamma2 * side


class MeanFusion(nn.Module):
    """Eq. 4 without modulators (Table 3, w/o V.M.): Eq. 3's value where gamma1 = gamma2."""

    def forward(self, front: Tensor, side: Tensor) -> Tensor:
        """Two [b, c, h, w] -> one."""
        return (front + side) * math.sqrt(0.5)


class ResBlockFusion(nn.Module):
    """Eq. 4 replaced by a residual block on both views (Table 3, ResNet)."""

    def __init__(self, channels: int, dropout: float = 0.0):
        super().__init__()
        self.block = ResBlock(2, 2 * channels, channels, dropout=dropout)

    def forward(self, front: Tensor, side: Tensor) -> Tensor:
        """Two [b, c, h, w] -> one."""
        return self.block(torch.cat(torch.broadcast_tensors(front, side), dim=1))


class LearnableEmbedding(nn.Module):
    """Eq. 5's second term: CONV(sine + z), a learned map that starts as a sine encoding, perturbed by z."""

    def __init__(self, channels: int, rows: int, cols: int):
        super().__init__()
        self.sine = nn.Parameter(sine_encoding_2d(channels, rows, cols))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """The perturbation [b, c, rows, cols] -> the embedding, of the same shape."""
        return F.silu(self.conv(self.sine + z.to(self.sine.dtype)))


class TriplaneGenerator(nn.Module):
    """Sec. 3.2: frontal and lateral X-ray -> (zx, zy, yx) planes at R, R/2, R/4, finest first.

    Args:
        size: voxels per side of the volume, or (D, H, W); divisible by 2^(levels - 1).
        plane_channels: channels of the stem and of every plane that comes out.
        encoder_channels: width per level of the encoder; the last level is the bottleneck.
        num_blocks: residual blocks per encoder level.
        num_scales: how many resolutions come out; with as many as levels, the bottleneck's too.
        uv_fusion: how Eq. 4 lays out the axial plane: literal, transpose or axis (`lay_out_axial`).
        fusion: modulators (Eq. 3-4), or Table 3's mean and resnet.
        learnable_embedding: False drops Eq. 5's second term (Table 3).
        dropout: before the second convolution of each residual block.

    Raises:
        UserError: sides that do not fit the levels or the fusion; X-rays of another size.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        plane_channels: int = 64,
        encoder_channels: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 2,
        num_scales: int = 3,
        uv_fusion: str = "literal",
        fusion: str = "modulators",
        learnable_embedding: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.size = (size, size, size) if isinstance(size, int) else tuple(size)
        self.plane_channels, self.num_scales, self.uv_fusion = plane_channels, num_scales, uv_fusion
        factor = 2 ** (len(encoder_channels) - 1)
        _check_options(self.size, factor, len(encoder_channels), num_scales, uv_fusion, fusion)
        _, height, width = self.size
        self.perturbation_shape = (encoder_channels[-1], height // factor, width // factor)
        self.stem = conv_norm_act(2, 1, plane_channels)
        self.interleave = InterleavedConv(plane_channels)
        self.encoder = PlaneEncoder(plane_channels, encoder_channels, num_blocks, dropout)
        self.fusions = nn.ModuleList(_make_fusion(fusion, width, dropout) for width in encoder_channels)
        self.embedding = LearnableEmbedding(*self.perturbation_shape) if learnable_embedding else None
        self.decoder = PlaneDecoder(encoder_channels, plane_channels, dropout)

    def forward(
        self, frontal: Float[Tensor, "b 1 d w"], lateral: Float[Tensor, "b 1 d h"], z: Plane | None = None
    ) -> list[Planes]:
        """X-rays [b, 1, D, W] and [b, 1, D, H] in [-1, 1] -> num_scales triples of planes, finest first.

        z: [b, *perturbation_shape], Eq. 5's Gaussian perturbation. None draws one while training and is
        zero in evaluation, where a sampler that wants one passes the same z at every step.
        """
        self._check_xrays(frontal, lateral)
        front, side = shared(self.stem, (frontal, lateral))
        zx, zy = self._encode(*self.interleave(front, side))
        yx = [self._fuse(i, a, b) for i, (a, b) in enumerate(zip(zx, zy, strict=True))]
        if self.embedding is not None:
            yx[-1] = yx[-1] + self.embedding(self._perturbation(frontal, z)).to(yx[-1].dtype)  # Eq. 5
        return self._decode(zx, zy, yx)[: self.num_scales]

    def _encode(self, front: Tensor, side: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if front.shape != side.shape:
            return self.encoder(front), self.encoder(side)
        both = [level.chunk(2) for level in self.encoder(torch.cat((front, side)))]
        return [front for front, _ in both], [side for _, side in both]

    def _fuse(self, level: int, zx: Tensor, zy: Tensor) -> Tensor:
        return self.fusions[level](*lay_out_axial(zx, zy, self.uv_fusion))

    def _perturbation(self, like: Tensor, z: Tensor | None) -> Tensor:
        if z is not None:
            return z
        make = torch.randn if self.training else torch.zeros
        return make((like.shape[0], *self.perturbation_shape), device=like.device)

    def _decode(self, zx: list[Tensor], zy: list[Tensor], yx: list[Tensor]) -> list[Planes]:
        if len({plane[0].shape for plane in (zx, zy, yx)}) == 1:
            decoded = self.decoder([torch.cat(level) for level in zip(zx, zy, yx, strict=True)])
            return [tuple(level.chunk(3)) for level in decoded]
        return list(zip(self.decoder(zx), self.decoder(zy), self.decoder(yx), strict=True))

    def _check_xrays(self, frontal: Tensor, lateral: Tensor) -> None:
        depth, height, width = self.size
        if frontal.shape[2:] != (depth, width) or lateral.shape[2:] != (depth, height):
            raise UserError(
                f"X-rays of {tuple(frontal.shape[2:])} (frontal) and {tuple(lateral.shape[2:])} (lateral) pixels, "
                f"but the model was built for {(depth, width)} and {(depth, height)}; resize them"
            )


def _make_fusion(fusion: str, channels: int, dropout: float) -> nn.Module:
    if fusion == "mean":
        return MeanFusion()
    return ViewModulators(channels) if fusion == "modulators" else ResBlockFusion(channels, dropout)


def _check_options(
    size: Sequence[int], factor: int, num_levels: int, num_scales: int, uv_fusion: str, fusion: str
) -> None:
    if len(size) != 3 or any(side % factor or side < factor for side in size):
        raise UserError(f"size={tuple(size)}: {num_levels} encoder levels need sides divisible by {factor}")
    check_choice("conditioning.uv_fusion", uv_fusion, UV_FUSIONS)
    check_choice("conditioning.fusion", fusion, FUSIONS)
    if uv_fusion != "axis" and len(set(size)) > 1:
        raise UserError(f"uv_fusion={uv_fusion} needs a cube, not {tuple(size)}; use uv_fusion=axis")
    if not 1 <= num_scales <= num_levels:
        raise UserError(f"num_scales={num_scales}: {num_levels} encoder levels give 1 to {num_levels} scales")
