"""Shifted-window attention in 3D, for the U-Net's last stage (Sec. 3.3; Swin, Liu et al. 2021)."""

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.types import FeatureVolume

Triple = tuple[int, int, int]


def fit_window(grid: Triple, window_size: int, shift_size: int) -> tuple[Triple, Triple]:
    """Window and shift per axis: where the grid is not larger than the window, one unshifted window."""
    d, h, w = (min(window_size, n) for n in grid)
    window = (d, h, w)
    d, h, w = (0 if n <= window_size else shift_size for n in grid)
    shift = (d, h, w)
    if any(n % w for n, w in zip(grid, window, strict=True)):
        raise UserError(
            f"window attention: a grid of {'x'.join(map(str, grid))} is not divisible by "
            f"window_size={window_size}; choose a window_size that divides it, or another volume size"
        )
    return window, shift


# The two tables below are constants of a shape. A cache keeps one copy for all blocks, and keeps them out of
# the modules, so that buffers, EMA copies and DDP broadcasts never depend on which shapes have been seen.


@lru_cache(maxsize=32)
def relative_position_index(window: Triple, window_size: int, device: torch.device) -> Tensor:
    """[n, n] rows of the (2 window_size - 1)^3 bias table, n voxels in a window (which may have shrunk)."""
    with torch.inference_mode(False):
        sides = [torch.arange(w, device=device) for w in window]
        points = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).reshape(-1, 3)
        offset = points[:, None] - points[None, :] + (window_size - 1)
        span = 2 * window_size - 1
        return (offset[..., 0] * span + offset[..., 1]) * span + offset[..., 2]


@lru_cache(maxsize=32)
def shift_mask(
    grid: Triple, window: Triple, shift: Triple, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[num_windows, n, n]: 0 within a region, -inf between voxels that only the roll brought together."""
    with torch.inference_mode(False):
        # After a roll by -s, the last s voxels of an axis come from its other end: a region of their own.
        wrapped = [torch.arange(n, device=device) >= n - s for n, s in zip(grid, shift, strict=True)]
        z, y, x = (side.long() for side in wrapped)
        region = 4 * z[:, None, None] + 2 * y[None, :, None] + x[None, None, :]
        region = partition_windows(region[None, ..., None], window)[..., 0]
        differs = region[:, :, None] != region[:, None, :]
        return torch.zeros(differs.shape, device=device, dtype=dtype).masked_fill(differs, float("-inf"))


def partition_windows(x: Tensor, window: Triple) -> Tensor:
    """[b, d, h, w, c] -> [b * num_windows, n, c]."""
    p, q, r = window
    return rearrange(x, "b (d p) (h q) (w r) c -> (b d h w) (p q r) c", p=p, q=q, r=r)


def merge_windows(x: Tensor, window: Triple, grid: Triple) -> Tensor:
    """The inverse of `partition_windows`: [b * num_windows, n, c] -> [b, d, h, w, c]."""
    (p, q, r), (d, h, w) = window, (n // k for n, k in zip(grid, window, strict=True))
    return rearrange(x, "(b d h w) (p q r) c -> b (d p) (h q) (w r) c", d=d, h=h, w=w, p=p, q=q, r=r)


class WindowAttention3d(nn.Module):
    """Multi-head attention within windows of `window_size`^3 voxels, shifted by `shift_size`, with a learned
    bias per relative position and head. Channels last: [b, d, h, w, c] -> the same."""

    def __init__(self, channels: int, num_heads: int = 8, window_size: int = 8, shift_size: int = 0):
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise UserError(f"num_heads={num_heads}: does not divide {channels} channels; choose a divisor")
        self.num_heads, self.window_size, self.shift_size = num_heads, window_size, shift_size
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.relative_bias = nn.Parameter(torch.empty((2 * window_size - 1) ** 3, num_heads))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def attention_bias(self, grid: Triple, window: Triple, shift: Triple, dtype: torch.dtype) -> Tensor:
        """[1, heads, n, n]: relative bias; where shifted [1, num_windows * heads, n, n], with -inf across wrapped
        regions."""
        table = self.relative_bias.t()
        index = relative_position_index(window, self.window_size, table.device)
        # Gathered before the cast: backward adds up each entry's many gradients in fp32.
        bias = table[:, index.flatten()].view(1, self.num_heads, *index.shape).to(dtype)
        if not any(shift):
            return bias
        return (bias + shift_mask(grid, window, shift, table.device, dtype)[:, None]).flatten(0, 1)[None]

    def forward(self, x: Tensor) -> Tensor:
        """Shift, attend within each window, shift back."""
        d, h, w = x.shape[1:-1]
        grid = (d, h, w)
        window, shift = fit_window(grid, self.window_size, self.shift_size)
        if any(shift):
            x = torch.roll(x, [-s for s in shift], dims=(1, 2, 3))
        x = partition_windows(x, window)
        qkv = self.qkv(x)
        bias = self.attention_bias(grid, window, shift, qkv.dtype)
        # A bias that differs between windows counts them as heads, and so serves all samples without a copy for each.
        folded = bias.shape[1] // self.num_heads
        q, k, v = rearrange(qkv, "(b w) n (i heads c) -> i b (w heads) n c", i=3, w=folded, heads=self.num_heads)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = rearrange(x, "b (w heads) n c -> (b w) n (heads c)", w=folded)
        x = merge_windows(self.out(x), window, grid)
        return torch.roll(x, shift, dims=(1, 2, 3)) if any(shift) else x


class SwinBlock3d(nn.Module):
    """One pre-LN Swin block on a volume: window attention, then an MLP of ratio 4, each with a residual."""

    def __init__(
        self, channels: int, num_heads: int = 8, window_size: int = 8, shifted: bool = False, mlp_ratio: int = 4
    ):
        super().__init__()
        shift_size = window_size // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention3d(channels, num_heads, window_size, shift_size)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, x: FeatureVolume) -> FeatureVolume:
        """[b, c, d, h, w] -> the same; raises UserError where the window does not divide the grid."""
        x = rearrange(x, "b c d h w -> b d h w c")
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return rearrange(x, "b d h w c -> b c d h w")
