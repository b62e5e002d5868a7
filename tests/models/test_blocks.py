import math

import pytest
import torch
from torch.nn import functional as F

from diffux2ct.models.blocks import (
    Downsample,
    GroupNorm,
    ResBlock2d,
    ResBlock3d,
    TimeEmbedding,
    Upsample,
    num_groups,
    timestep_embedding,
)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 32), (96, 32), (160, 32), (640, 32), (48, 16), (32, 16), (16, 8), (40, 8), (3, 1)],
)
def test_number_of_groups(channels: int, groups: int):
    assert num_groups(channels) == groups
    assert channels % groups == 0
    assert channels // groups >= 2


@pytest.mark.parametrize("shape", [(2, 64, 6, 5), (2, 48, 4, 6, 5)])
def test_group_norm_stays_in_bf16_under_autocast_and_agrees_with_fp32(shape: tuple[int, ...]):
    torch.manual_seed(0)
    norm = GroupNorm(shape[1])
    torch.nn.init.normal_(norm.weight, mean=1, std=0.3)
    torch.nn.init.normal_(norm.bias, std=0.3)
    x = torch.randn(shape) * 3 + 1
    exact = F.group_norm(x, norm.num_groups, norm.weight, norm.bias)
    assert torch.equal(norm(x), exact)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16().requires_grad_())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.06, rtol=0.02)
    y.float().square().sum().backward()
    assert norm.weight.grad.dtype == torch.float32
    assert norm.weight.grad.abs().max() > 0


@pytest.mark.parametrize("channels", [8, 16, 32, 64])
def test_the_time_embedding_survives_the_norm_that_follows_it(channels: int):
    """With one channel per group the norm would subtract the time again."""
    torch.manual_seed(0)
    block = ResBlock3d(channels, channels, time_channels=12).eval()
    x = torch.randn(1, channels, 4, 4, 4)
    early, late = (block(x, torch.full((1, 12), value)) for value in (-2.0, 2.0))
    assert (early - late).abs().mean() > 0.02


def test_residual_block_is_the_formula():
    torch.manual_seed(0)
    block = ResBlock2d(6, 10, time_channels=4, dropout=0.5).eval()
    x, time = torch.randn(2, 6, 5, 7), torch.randn(2, 4)
    h = F.conv2d(F.silu(block.norm1(x)), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.conv2d(F.silu(block.norm2(h)), block.conv2.weight, block.conv2.bias, padding=1)
    expected = h + F.conv2d(x, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x, time), expected)
    assert not torch.equal(block.train()(x, time), block(x, time)), "dropout draws anew while training"


def test_resampling_halves_and_doubles():
    x = torch.randn(1, 4, 8, 6, 4)
    assert Downsample(3, 4, 5)(x).shape == (1, 5, 4, 3, 2)
    assert Upsample(3, 4, 5)(x).shape == (1, 5, 16, 12, 8)
    assert Downsample(2, 4, 5)(x[:, :, 0]).shape == (1, 5, 3, 2)


def test_timestep_embedding_takes_integers_and_floats():
    t = torch.tensor([0, 1, 999])
    embedding = timestep_embedding(t, 8)
    torch.testing.assert_close(embedding, timestep_embedding(t.float(), 8))
    torch.testing.assert_close(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(
        embedding[1, [0, 1, 4, 5]].tolist(), [math.cos(1), math.cos(0.1), math.sin(1), math.sin(0.1)]
    )
    out = TimeEmbedding(8, 32)(t)
    assert out.shape == (3, 32)
    assert (out[1] - out[2]).abs().max() > 1e-3
