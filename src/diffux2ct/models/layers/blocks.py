"""The small parts that every network here is made of: norm, residual block, resampling, time embedding."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.models.layers.normalization import GroupNormSiLU


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` that leaves CPU autocast where its input is smaller than its kernel.

    There the weight's gradient in bfloat16 is wrong, up to infinity (PyTorch 2.13 on AVX-512 bf16; in float32 it is
    right). Such inputs are a few voxels, so nothing is lost.
    """

    def forward(self, input: Tensor) -> Tensor:
        small = any(side < width for side, width in zip(input.shape[2:], self.kernel_size, strict=True))
        if small and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


CONV = {2: nn.Conv2d, 3: Conv3d}


def without_autocast(device: str) -> AbstractContextManager:
    """Autocast off inside a ``with`` block; the meta device, which only counts, has no autocast."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def conv_norm_act(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """3-wide convolution, group norm, SiLU (the stem and the interleaved convolution)."""
    conv = CONV[dims](in_channels, out_channels, 3, padding=1)
    return nn.Sequential(conv, GroupNormSiLU(out_channels))


def two_convs(dims: int, in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Two `conv_norm_act` with dropout between them, where a residual block has it."""
    _check_dropout(dropout)
    first, second = conv_norm_act(dims, in_channels, out_channels), conv_norm_act(dims, out_channels, out_channels)
    return nn.Sequential(first, nn.Dropout(dropout), second)


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout}: must lie between 0 and 1")


class ResBlock(nn.Module):
    """SR3's residual block in 2D or 3D: GN-SiLU-Conv, + Linear(time), GN-SiLU-Dropout-Conv, 1-wide skip.

    `time_channels=None` leaves the time out (the planes see no diffusion step).
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, time_channels: int | None = None, dropout: float = 0.0
    ):
        super().__init__()
        _check_dropout(dropout)
        conv = CONV[dims]
        self.norm1 = GroupNormSiLU(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.time = None if time_channels is None else nn.Linear(time_channels, out_channels)
        self.norm2 = GroupNormSiLU(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[b, in, ...] and the embedded time [b, time_channels] -> [b, out, ...]."""
        h = self.conv1(self.norm1(x))
        if self.time is not None:
            shift = self.time(time)
            # In place: backward needs the sum alone, not what the convolution gave.
            h = h.add_(shift.reshape(*shift.shape, *(1,) * (h.ndim - 2)).to(h.dtype))
        h = self.conv2(self.dropout(self.norm2(h)))
        return self.skip(x) + h


class Downsample(nn.Module):
    """Convolution of stride 2: halves every side."""

    def __init__(self, dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CONV[dims](in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, n, ...] -> [b, out, n / 2, ...]."""
        return self.conv(x)


class _Double(torch.autograd.Function):
    """Nearest neighbour x2. PyTorch's backward gives a contiguous gradient, which the next layer would have to copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        for axis in range(2, grad.ndim):
            even, odd = grad.unflatten(axis, (-1, 2)).unbind(axis + 1)
            grad = even + odd
        return grad


class Upsample(nn.Module):
    """Nearest neighbour x2, then a convolution: doubles every side."""

    def __init__(self, dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CONV[dims](in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, n, ...] -> [b, out, 2 n, ...]."""
        return self.conv(_Double.apply(x))


def timestep_embedding(t: Shaped[Tensor, " b"], channels: int, max_period: float = 10000.0) -> Float[Tensor, "b c"]:
    """Sinusoids of a step (integer or float): `channels` numbers in fp32, cosines first."""
    half = channels // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
    rates = torch.exp(-math.log(max_period) * exponents)
    angles = t.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoid(channels), Linear, SiLU, Linear: [b] -> [b, out_channels]."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        if channels % 2:
            raise UserError(
                f"denoiser.channels: the time embedding needs an even width, not {channels}; change the first"
            )
        self.channels = channels
        self.linear1 = nn.Linear(channels, out_channels)
        self.linear2 = nn.Linear(out_channels, out_channels)

    def forward(self, t: Shaped[Tensor, " b"]) -> Float[Tensor, "b c"]:
        embedding = timestep_embedding(t, self.channels).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(embedding)))
