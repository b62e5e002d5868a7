"""Swin-tiny for 224 x 224 images (Liu et al., 2021), its parameters named as in transformers' ``SwinModel``.

Only what MedCLIP's weights need, for inference: no dropout, no other sizes. Own code because transformers would be a
large dependency whose internal names, which the weights file follows, it is free to change.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 224
WINDOW = 7
DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)
WIDTH = 96


class SwinTiny(nn.Module):
    """[n, 3, 224, 224] to pooled features [n, 768]: the mean over the last stage's 49 normalised tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "patch_embeddings": nn.ModuleDict({"projection": nn.Conv2d(3, WIDTH, 4, stride=4)}),
                "norm": nn.LayerNorm(WIDTH),
            }
        )
        stages = [
            Stage(WIDTH * 2**i, SIDE // 4 // 2**i, DEPTHS[i], HEADS[i], last=i == len(DEPTHS) - 1)
            for i in range(len(DEPTHS))
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(stages)})
        self.layernorm = nn.LayerNorm(WIDTH * 8)

    def forward(self, images: Float[Tensor, "n 3 224 224"]) -> Float[Tensor, "n 768"]:
        x = self.embeddings["patch_embeddings"]["projection"](images)  # type: ignore[index]
        x = self.embeddings["norm"](rearrange(x, "n c h w -> n h w c"))
        for stage in self.encoder["layers"]:  # type: ignore[union-attr]
            x = stage(x)
        return self.layernorm(x).mean(dim=(1, 2))


class Stage(nn.Module):
    """Blocks, every second one shifted, then patch merging except in the last stage."""

    def __init__(self, width: int, side: int, depth: int, heads: int, last: bool) -> None:
        super().__init__()
        # Where one window covers the whole map, there is nothing to shift.
        shifts = [WINDOW // 2 if i % 2 and side > WINDOW else 0 for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, side, heads, shift) for shift in shifts)
        self.downsample = nn.Identity() if last else PatchMerging(width)

    def forward(self, x: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s2 s2 c2"]:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class PatchMerging(nn.Module):
    """2 x 2 neighbours side by side, normalised, then halved in width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s2 s2 c2"]:
        # The column offset is the outer one: (0, 0), (1, 0), (0, 1), (1, 1) as (row, column).
        merged = rearrange(x, "n (h i) (w j) c -> n h w (j i c)", i=2, j=2)
        return self.reduction(self.norm(merged))


class Block(nn.Module):
    """Window attention and an MLP, each after a LayerNorm and with a shortcut."""

    mask: Tensor

    def __init__(self, width: int, side: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.layernorm_before = nn.LayerNorm(width)
        self.attention = nn.ModuleDict(
            {"self": WindowAttention(width, heads), "output": nn.ModuleDict({"dense": nn.Linear(width, width)})}
        )
        self.layernorm_after = nn.LayerNorm(width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * width, width)})
        self.register_buffer("mask", _shift_mask(side, shift), persistent=False)

    def forward(self, x: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s s c"]:
        y = self.layernorm_before(x).roll((-self.shift, -self.shift), (1, 2))
        windows = rearrange(y, "n (h i) (w j) c -> n (h w) (i j) c", i=WINDOW, j=WINDOW)
        windows = self.attention["self"](windows, self.mask)
        windows = self.attention["output"]["dense"](windows)  # type: ignore[index]
        h = x.shape[1] // WINDOW
        y = rearrange(windows, "n (h w) (i j) c -> n (h i) (w j) c", h=h, i=WINDOW, j=WINDOW)
        x = x + y.roll((self.shift, self.shift), (1, 2))
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class WindowAttention(nn.Module):
    """Self-attention among the 49 tokens of a window, with a learned bias by relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions())

    def forward(
        self, x: Float[Tensor, "n windows 49 c"], mask: Float[Tensor, "windows2 1 49 49"]
    ) -> Float[Tensor, "n windows 49 c"]:
        query, key, value = (
            rearrange(part(x), "n m t (h c) -> n m h t c", h=self.heads) for part in (self.query, self.key, self.value)
        )
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = rearrange(bias, "(t u) h -> h t u", t=WINDOW**2)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias + mask)
        return rearrange(y, "n m h t c -> n m t (h c)")


def relative_positions() -> Int64[Tensor, "49 49"]:
    """Row of the bias table for each pair of tokens in a window: 13 (dy + 6) + dx + 6."""
    y, x = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (2 * WINDOW - 1) * (y[:, None] - y + WINDOW - 1) + x[:, None] - x + WINDOW - 1


def _shift_mask(side: int, shift: int) -> Tensor:
    """[windows or 1, 1, 49, 49]: -100 between tokens that only the cyclic shift brought into one window."""
    if not shift:
        return torch.zeros(1, 1, WINDOW**2, WINDOW**2)
    line = torch.zeros(side)
    line[side - WINDOW : side - shift] = 1
    line[side - shift :] = 2
    regions = 3 * line[:, None] + line
    regions = rearrange(regions, "(h i) (w j) -> (h w) (i j)", i=WINDOW, j=WINDOW)
    return -100.0 * (regions[:, None, :, None] != regions[:, None, None, :]).float()
