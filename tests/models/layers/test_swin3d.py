"""Shifted windows against a reference that loops over pairs of voxels, and SPEC's wrapped-region test."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffux2ct.errors import UserError
from diffux2ct.models.layers.swin3d import SwinBlock3d, WindowAttention3d, merge_windows, partition_windows, shift_mask


def naive_attention(module: WindowAttention3d, x: Tensor) -> Tensor:
    """Every pair of voxels in turn: may they meet, and which bias do they get? [d, h, w, c] -> the same."""
    sides, channels, full = x.shape[:3], x.shape[3], module.window_size
    voxels = list(itertools.product(*(range(n) for n in sides)))
    allowed = torch.zeros(len(voxels), len(voxels), dtype=torch.bool)
    row = torch.zeros(len(voxels), len(voxels), dtype=torch.long)
    for (i, p), (j, q) in itertools.product(enumerate(voxels), repeat=2):
        meet, index = True, 0
        for n, a, b in zip(sides, p, q, strict=True):
            shift = module.shift_size if n > full else 0
            window = min(full, n)
            a, b, wrapped_a, wrapped_b = (a - shift) % n, (b - shift) % n, a < shift, b < shift
            meet = meet and a // window == b // window and wrapped_a == wrapped_b
            index = index * (2 * full - 1) + (a - b + full - 1)
        allowed[i, j], row[i, j] = meet, index if meet else 0
    heads, out = module.num_heads, []
    q, k, v = module.qkv(x.reshape(-1, channels)).chunk(3, dim=-1)
    for head, (qh, kh, vh) in enumerate(zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)):
        score = qh @ kh.T / (channels // heads) ** 0.5 + module.relative_bias[row, head]
        out.append(score.masked_fill(~allowed, float("-inf")).softmax(-1) @ vh)
    return module.out(torch.cat(out, dim=-1)).reshape(x.shape)


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((4, 4, 6), 2, 0),
        ((4, 4, 6), 2, 1),
        ((8, 4, 8), 4, 2),  # one axis is no larger than the window: no shift there
        ((3, 4, 6), 6, 3),  # a single window, shrunk to the grid
    ],
)
def test_attention_equals_the_naive_loop(grid: tuple[int, int, int], window: int, shift: int):
    torch.manual_seed(0)
    module = WindowAttention3d(8, num_heads=2, window_size=window, shift_size=shift).double()
    torch.nn.init.normal_(module.relative_bias)
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    expected = torch.stack([naive_attention(module, sample) for sample in x])
    torch.testing.assert_close(module(x), expected, atol=1e-10, rtol=1e-10)


def test_no_attention_across_wrapped_regions():
    """The roll brings voxels 0, 1 and 6, 7 of each axis into one window; they must not see each other."""
    torch.manual_seed(0)
    block = SwinBlock3d(8, num_heads=2, window_size=4, shifted=True)
    x = torch.randn(1, 8, 8, 8, 8, requires_grad=True)
    block(x)[0, :, 0, 0, 0].square().sum().backward()
    seen = x.grad[0].abs().sum(0)
    assert (seen[:2, :2, :2] > 0).all()
    seen[:2, :2, :2] = 0
    assert torch.count_nonzero(seen) == 0, "exactly zero, not small"


def test_shifted_window_joins_neighbouring_windows():
    """Voxels 3 and 4 lie in two windows, and the shift is there to let them meet."""
    for shifted in (False, True):
        block = SwinBlock3d(8, num_heads=2, window_size=4, shifted=shifted)
        x = torch.randn(1, 8, 8, 8, 8, requires_grad=True)
        block(x)[0, :, 3, 3, 3].sum().backward()
        assert bool(x.grad[0, :, 4, 4, 4].abs().sum() > 0) is shifted


def test_windows_round_trip():
    x = torch.randn(2, 4, 6, 8, 3)
    windows = partition_windows(x, (2, 3, 4))
    assert windows.shape == (2 * 8, 24, 3)
    assert torch.equal(merge_windows(windows, (2, 3, 4), (4, 6, 8)), x)


def test_mask_is_built_once_per_shape():
    key = ((8, 8, 8), (4, 4, 4), (2, 2, 2), torch.device("cpu"))
    assert shift_mask(*key) is shift_mask(*key)
    assert shift_mask(*key, torch.bfloat16) is shift_mask(*key, torch.bfloat16)
    assert shift_mask(*key, torch.bfloat16).dtype == torch.bfloat16
    assert "mask" not in "".join(SwinBlock3d(8, 2, 4, shifted=True).state_dict())


class Attention(TorchDispatchMode):
    """The bytes behind the mask of each fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[int] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if "flash_attention" in str(operation):
            assert kwargs
            self.masks.append(kwargs["attn_mask"].untyped_storage().nbytes())
        return operation(*args, **(kwargs or {}))


def test_sampling_is_fused_and_all_samples_share_one_mask():
    block = SwinBlock3d(8, num_heads=2, window_size=4, shifted=True)
    with torch.no_grad(), Attention() as seen:
        block(torch.randn(3, 8, 8, 8, 8))
    windows, heads, voxels = 8, 2, 64
    assert seen.masks == [windows * heads * voxels**2 * 4]


def test_mask_made_while_sampling_serves_training():
    shift_mask.cache_clear()
    block = SwinBlock3d(8, num_heads=2, window_size=2, shifted=True)
    x = torch.randn(1, 8, 4, 4, 4)
    with torch.inference_mode():
        expected = block(x)
    y = block(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected.clone())


def test_grid_that_the_window_does_not_divide():
    with pytest.raises(UserError, match=r"6x8x8 is not divisible by window_size=4"):
        SwinBlock3d(8, num_heads=2, window_size=4)(torch.zeros(1, 8, 6, 8, 8))


def test_bias_table_has_the_papers_size():
    assert WindowAttention3d(256, 8, 8).relative_bias.shape == (15**3, 8)


def test_gradients_of_the_bias_are_added_up_in_fp32():
    torch.manual_seed(0)
    attention = WindowAttention3d(8, 2, window_size=4)
    shape = ((4, 4, 4), (4, 4, 4), (0, 0, 0))
    weight = torch.randn_like(attention.attention_bias(*shape, torch.float32)).bfloat16()
    (attention.attention_bias(*shape, torch.bfloat16) * weight).sum().backward()
    rounded, attention.relative_bias.grad = attention.relative_bias.grad, None
    (attention.attention_bias(*shape, torch.float32) * weight.float()).sum().backward()
    torch.testing.assert_close(rounded, attention.relative_bias.grad, rtol=0, atol=1e-5)
