"""Eq. 6: the fast form is the grid_sample form (docs/method.md)."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffux2ct.models.implicit_decoder import ImplicitDecoder

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
decode_by_grid_sample = runpy.run_path(str(BENCHMARKS / "_eq6.py"))["decode_by_grid_sample"]


def make_planes(sides: tuple[int, int, int], channels: int = 16, dtype=torch.float32) -> list[Tensor]:
    (d, h, w), generator = sides, torch.Generator().manual_seed(0)
    shapes = [(2, channels, d, w), (2, channels, d, h), (2, channels, h, w)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("sides", "grid"), [((16, 16, 16), None), ((16, 8, 32), None), ((16, 16, 16), (8, 8, 8)), ((8, 8, 8), (16, 16, 16))]
)
def test_broadcast_equals_grid_sample(sides: tuple[int, int, int], grid: tuple[int, int, int] | None):
    torch.manual_seed(0)
    decoder = ImplicitDecoder(16, 16, 8)
    planes = make_planes(sides)
    with torch.no_grad():
        fast, oracle = decoder(*planes, grid), decode_by_grid_sample(decoder, *planes, grid)
    assert fast.shape == (2, 8, *(grid or sides))
    assert 0.5 < oracle.abs().max() < 5, "of the order of 1, so that the tolerance is a relative one"
    torch.testing.assert_close(fast, oracle, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [None, (12, 5, 14), (3, 10, 7)])
def test_equality_in_double_precision_at_odd_sizes(grid: tuple[int, int, int] | None):
    torch.manual_seed(0)
    decoder = ImplicitDecoder(16, 16, 8).double()
    planes = [plane.requires_grad_() for plane in make_planes((6, 10, 7), dtype=torch.float64)]
    leaves = (*planes, *decoder.parameters())
    outputs, grads = [], []
    for decode in (decoder, lambda *args: decode_by_grid_sample(decoder, *args)):
        h = decode(*planes, grid)
        outputs.append(h)
        grads.append(torch.autograd.grad(h.square().sum(), leaves))
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=0)
    torch.testing.assert_close(*grads, atol=1e-9, rtol=1e-9)


def test_every_plane_lies_along_its_own_axes():
    """h at (z, y, x) must depend on zx[z, x], zy[z, y] and yx[y, x], and on nothing else."""
    decoder = ImplicitDecoder(4, 8, 3)
    planes = [plane.requires_grad_() for plane in make_planes((6, 5, 7), channels=4)]
    z, y, x = 4, 1, 5
    decoder(*planes)[0, :, z, y, x].sum().backward()
    for plane, expected in zip(planes, ((z, x), (z, y), (y, x)), strict=True):
        hits = plane.grad[0].abs().sum(0).nonzero().tolist()
        assert hits == [list(expected)]
        assert not plane.grad[1].any()


def test_planes_interact():
    """A mixed second difference over two planes is zero for any sum of plane functions."""
    torch.manual_seed(0)
    decoder = ImplicitDecoder(4, 8, 3)
    zx, zy, yx = make_planes((4, 4, 4), channels=4)
    mixed = decoder(zx, zy, yx) - decoder(-zx, zy, yx) - decoder(zx, -zy, yx) + decoder(-zx, -zy, yx)
    assert mixed.abs().mean() > 0.01


def test_result_is_channels_last():
    h = ImplicitDecoder(4, 8, 3)(*make_planes((4, 6, 8), channels=4))
    assert h.is_contiguous(memory_format=torch.channels_last_3d)
