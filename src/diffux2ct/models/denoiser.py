"""The 3D U-Net denoiser (Sec. 3.3), whose features take the conditions h^(i) by concatenation."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffux2ct.errors import UserError
from diffux2ct.models.layers.blocks import Downsample, ResBlock, TimeEmbedding, Upsample, without_autocast
from diffux2ct.models.layers.layout import concatenate
from diffux2ct.models.layers.normalization import GroupNormSiLU
from diffux2ct.models.layers.swin3d import SwinBlock3d


class DenoiserBlock(nn.Module):
    """A residual block and, in the last stage, a Swin block after it."""

    def __init__(self, residual: ResBlock, swin: SwinBlock3d | None = None):
        super().__init__()
        self.residual = residual
        self.swin = nn.Identity() if swin is None else swin

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[b, in, d, h, w] and the embedded time -> [b, out, d, h, w]."""
        return self.swin(self.residual(x, time))


class UNet3d(nn.Module):
    """Predicts from a noisy volume x_t, its step t and the conditions h^(1..N), finest first (Sec. 3.3).

    Every stage concatenates its condition once on the way down and once on the way up, at its first block:
    [f_down, h] and [f_up, skip, h]. Only the last stage has shifted-window attention: W, SW, ... going down,
    W in the middle, SW, W, ... going up. The last convolution starts at zero, so an untrained network
    predicts 0.

    Args:
        channels: width of every stage; stage i works at size / 2^i.
        num_blocks: residual blocks of a stage, each way.
        condition_channels: channels of h^(i), one per stage; 0 where a stage has no condition.
        checkpoint_stages: stages that recompute their activations in backward, by their side in voxels (the
            longest one): [128] is the finest stage of a volume of 128^3.

    Raises:
        UserError: sides not divisible by 2^(stages - 1), or those of the last stage not by the window; a stage to
            checkpoint that the volume does not have.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256),
        num_blocks: int = 2,
        condition_channels: Sequence[int] = (32, 64, 128),
        num_heads: int = 8,
        window_size: int = 8,
        dropout: float = 0.2,
        in_channels: int = 1,
        out_channels: int = 1,
        checkpoint_stages: Sequence[int] | None = None,
    ):
        super().__init__()
        if len(condition_channels) != len(channels):
            raise UserError(
                f"denoiser.channels: {len(channels)} stages, {len(condition_channels)} conditions; give one for each"
            )
        self.condition_channels = tuple(condition_channels)
        self.checkpoint_stages = frozenset(checkpoint_stages or ())
        time_channels = 4 * channels[0]
        last = len(channels) - 1

        def block(width_in: int, width: int, stage: int, shifted: bool) -> DenoiserBlock:
            swin = SwinBlock3d(width, num_heads, window_size, shifted) if stage == last else None
            return DenoiserBlock(ResBlock(3, width_in, width, time_channels, dropout), swin)

        self.time = TimeEmbedding(channels[0], time_channels)
        self.stem = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        below = channels[0]
        for i, (width, extra) in enumerate(zip(channels, condition_channels, strict=True)):
            down_in = [below + extra] + [width] * (num_blocks - 1)
            up_in = [2 * width + extra] + [2 * width] * (num_blocks - 1)
            self.down.append(nn.ModuleList(block(n, width, i, j % 2 == 1) for j, n in enumerate(down_in)))
            self.up.append(nn.ModuleList(block(n, width, i, j % 2 == 0) for j, n in enumerate(up_in)))
            if i < last:
                self.downsample.append(Downsample(3, width, width))
                self.upsample.append(Upsample(3, channels[i + 1], width))
            below = width
        middle = block(below, below, last, shifted=False), ResBlock(3, below, below, time_channels, dropout)
        self.middle = nn.ModuleList(middle)
        self.norm = GroupNormSiLU(channels[0])
        self.out = nn.Conv3d(channels[0], out_channels, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x_t: Float[Tensor, "b i d h w"], t: Shaped[Tensor, " b"], conditions: Sequence[Tensor]
    ) -> Float[Tensor, "b o d h w"]:
        """Noisy volume, steps (integer or float) and h^(i) at size / 2^i, finest first -> the prediction."""
        sides = self._check(x_t, conditions)
        time = self.time(t)
        x, skips, last = self.stem(x_t), [], len(self.down) - 1
        for i, stage in enumerate(self.down):
            x = concatenate(x, conditions[i])
            for block in stage.children():
                x = self._run(sides[i], block, x, time)
                skips.append(x)
            if i < last:
                x = self.downsample[i](x)
        for block in self.middle:
            x = self._run(sides[last], block, x, time)
        for i in reversed(range(len(self.up))):
            for j, block in enumerate(self.up[i].children()):
                skip = skips.pop()
                x = concatenate(x, skip, conditions[i]) if j == 0 else concatenate(x, skip)
                x = self._run(sides[i], block, x, time)
            if i > 0:
                x = self.upsample[i - 1](x)
        x = self.norm(x)
        # In fp32 also under autocast: Eq. 8 multiplies the output's rounding by up to 157.
        with without_autocast(x.device.type):
            return self.out(x.to(self.out.weight.dtype))

    def _run(self, side: int, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        if side in self.checkpoint_stages and torch.is_grad_enabled():
            return checkpoint(block, x, time, use_reentrant=False)
        return block(x, time)

    def _check(self, x: Tensor, conditions: Sequence[Tensor]) -> list[int]:
        """The longest side of every stage."""
        factor = 2 ** (len(self.down) - 1)
        if any(side % factor for side in x.shape[2:]):
            raise UserError(f"denoiser: a volume of {tuple(x.shape[2:])} voxels; choose sides divisible by {factor}")
        if len(conditions) != len(self.down):
            raise UserError(f"denoiser: {len(conditions)} conditions for {len(self.down)} stages; give one for each")
        sides = [max(x.shape[2:]) // 2**i for i in range(len(self.down))]
        if not self.checkpoint_stages.issubset(sides):
            raise UserError(
                f"denoiser.checkpoint_stages={sorted(self.checkpoint_stages)}: the stages of this volume have sides "
                f"of {', '.join(map(str, sides))} voxels; choose among them"
            )
        return sides
