"""Group normalisation, alone or with the SiLU that follows it: fast and frugal in bf16 and channels_last_3d."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

aten = torch.ops.aten
_SLAB = 2**24  # numbers: 64 MiB in fp32


def num_groups(channels: int, max_groups: int = 32) -> int:
    """gcd(32, channels), halved until a group holds two channels.

    A group of one channel subtracts each channel's own mean, and with it the whole time embedding that a
    residual block has just added. Widths of 64 and more (the paper's) keep their 32 groups.
    """
    groups = math.gcd(max_groups, channels)
    while groups > 1 and channels // groups < 2:
        groups //= 2
    return groups


class GroupNorm(nn.GroupNorm):
    """Group normalisation that stays in bf16 under autocast (which would run it, and save it, in fp32).

    Statistics, weight and bias are fp32 throughout. The memory format of what comes in is that of what goes out,
    also for gradients.
    """

    activation = False

    def __init__(self, channels: int, max_groups: int = 32):
        super().__init__(num_groups(channels, max_groups), channels)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, ...] -> the same shape, in autocast's dtype where that is on."""
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        return _Normalize.apply(x, self.weight, self.bias, self.num_groups, self.eps, self.activation)  # type: ignore[return-value]


class GroupNormSiLU(GroupNorm):
    """`GroupNorm`, then SiLU. What lies between the two is computed again in backward, and never kept."""

    activation = True


class _Normalize(torch.autograd.Function):
    """Keeps its input and two numbers a group. PyTorch's own backward for channels_last on a CPU is some ten times
    slower, and on CUDA its group norm changes the memory format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activation: bool) -> Tensor:
        x = x.contiguous(memory_format=memory_format(x))
        y, mean, rstd = normalize(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps, ctx.activation = groups, eps, activation
        return F.silu(y, inplace=True) if activation else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        if ctx.activation:
            y, _, _ = normalize(x, weight, bias, ctx.groups, ctx.eps)
            grad = aten.silu_backward.grad_input(grad, y, grad_input=y)
        batch, width = len(x), x.shape[1] // ctx.groups
        mean, rstd = (stat.repeat_interleave(width, dim=1) for stat in (mean, rstd))
        sums, sums_xhat = channel_sums(grad, x, mean, rstd)

        def group_mean(sums: Tensor) -> Tensor:
            total = (weight * sums).view(batch, ctx.groups, width).sum(2)
            return (total * (ctx.groups / x[0].numel())).repeat_interleave(width, dim=1)

        # xhat = (x - mean) rstd, g = weight grad: dx = rstd (g - <g> - xhat <g xhat>), <> the mean over a group.
        of_x = -(rstd**2) * group_mean(sums_xhat)
        constant = -rstd * group_mean(sums) - mean * of_x
        dx = torch.addcmul(per_channel(constant, x), x, per_channel(of_x, x), out=torch.empty_like(x))
        dx = dx.addcmul_(grad, per_channel(weight * rstd, grad))
        return dx, sums_xhat.sum(0), sums.sum(0), None, None, None


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last where `x` is so, else contiguous."""
    for form, ndim in ((torch.channels_last_3d, 5), (torch.channels_last, 4)):
        if x.ndim == ndim and x.is_contiguous(memory_format=form) and not x.is_contiguous():
            return form
    return torch.contiguous_format


def normalize(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of [b, c, ...], in its dtype and memory format; the groups' mean and 1 / deviation, [b, groups]."""
    if x.device.type == "cuda":
        return normalize_by_parts(x, weight, bias, groups, eps)
    batch, channels = x.shape[:2]
    return torch.native_group_norm(x, weight, bias, batch, channels, x[0, 0].numel(), groups, eps)


def normalize_by_parts(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`normalize` in plain operations: PyTorch's CUDA kernel would make `x` contiguous first.

    Mean first, then the squares around it: less the mean's square they would cancel where the mean is large.
    """
    width, voxels = x.shape[1] // groups, tuple(range(2, x.ndim))
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean = x.mean(voxels, dtype=dtype).view(len(x), groups, width).mean(2)
    centre = mean.repeat_interleave(width, dim=1)
    squares = torch.zeros_like(centre)
    for slab in slabs(x):
        squares += (slab - spread(centre, x)).square_().sum(voxels)
    variance = squares.view(len(x), groups, width).mean(2) / x[0, 0].numel()
    rstd = torch.rsqrt(variance + eps)
    scale = weight * rstd.repeat_interleave(width, dim=1)
    shift = bias - scale * centre
    return torch.addcmul(spread(shift, x), x, spread(scale, x), out=torch.empty_like(x)), mean, rstd


def slabs(x: Tensor) -> tuple[Tensor, ...]:
    """Views of [b, c, d, ...], cut along d to bound what one of them takes in fp32."""
    return x.split(max(1, _SLAB * x.shape[2] // x.numel()), dim=2)


def channel_sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the voxels of grad, and of grad (x - mean) rstd; all [b, c], in fp32 or better.

    grad and x have the same memory format.
    """
    if x.device.type == "cpu":  # batch norm's backward, a sample at a time, has just these sums, and is fast
        ask = None, None, None  # no weight, no running statistics
        parts = [
            aten.native_batch_norm_backward(g[None], v[None], *ask, m, r, True, 0.0, [False, True, True])
            for g, v, m, r in zip(grad, x, mean, rstd, strict=True)
        ]
        return torch.stack([part[2] for part in parts]), torch.stack([part[1] for part in parts])
    return sums_by_products(grad, x, mean, rstd)


def sums_by_products(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """`channel_sums` in plain operations, for any device. Centred and multiplied in fp32, a slab at a time."""
    voxels = tuple(range(2, x.ndim))
    sums, products = torch.zeros_like(mean), torch.zeros_like(mean)
    for g, slab in zip(slabs(grad), slabs(x), strict=True):
        sums += g.sum(voxels, dtype=mean.dtype)
        products += (slab - spread(mean, x)).mul_(g).sum(voxels)
    return sums, products * rstd


def per_channel(coefficients: Tensor, like: Tensor) -> Tensor:
    """[b, c] -> [b, c, 1, ...]; rounded to bf16 on a CPU, where mixed dtypes cost a copy of the volume in fp32."""
    return spread(coefficients.to(like.dtype) if like.device.type == "cpu" else coefficients, like)


def spread(coefficients: Tensor, like: Tensor) -> Tensor:
    """[b, c] -> [b, c, 1, ...], as many axes as `like` has."""
    return coefficients.view(*coefficients.shape, *(1,) * (like.ndim - 2))
