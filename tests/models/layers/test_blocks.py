import math

import pytest
import torch
from torch.nn import functional as F

from diffux2ct.models.layers.blocks import Downsample, ResBlock, TimeEmbedding, Upsample, timestep_embedding


@pytest.mark.parametrize("channels", [8, 16, 32, 64])
def test_the_time_embedding_survives_the_norm_that_follows_it(channels: int):
    """With one channel per group the norm would subtract the time again."""
    torch.manual_seed(0)
    block = ResBlock(3, channels, channels, time_channels=12).eval()
    x = torch.randn(1, channels, 4, 4, 4)
    early, late = (block(x, torch.full((1, 12), value)) for value in (-2.0, 2.0))
    assert (early - late).abs().mean() > 0.02


def test_residual_block_is_the_formula():
    torch.manual_seed(0)
    block = ResBlock(2, 6, 10, time_channels=4, dropout=0.5).eval()
    x, time = torch.randn(2, 6, 5, 7), torch.randn(2, 4)

    def norm_silu(x: torch.Tensor, groups: int) -> torch.Tensor:
        return F.silu(F.group_norm(x, groups))  # the weights of an untrained norm are 1 and 0

    h = F.conv2d(norm_silu(x, 2), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.conv2d(norm_silu(h, 2), block.conv2.weight, block.conv2.bias, padding=1)
    expected = h + F.conv2d(x, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x, time), expected)
    assert not torch.equal(block.train()(x, time), block(x, time)), "dropout draws anew while training"


def test_resampling_halves_and_doubles():
    x = torch.randn(1, 4, 8, 6, 4)
    assert Downsample(3, 4, 5)(x).shape == (1, 5, 4, 3, 2)
    assert Upsample(3, 4, 5)(x).shape == (1, 5, 16, 12, 8)
    assert Downsample(2, 4, 5)(x[:, :, 0]).shape == (1, 5, 3, 2)


def test_doubling_is_nearest_neighbour_interpolation_and_keeps_the_memory_format():
    torch.manual_seed(0)
    up = Upsample(3, 4, 5)
    x = torch.randn(2, 4, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    y = up(x)
    expected = up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(dx, *torch.autograd.grad(expected, x, grad))
    assert dx.stride() == x.stride()


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
