"""Our group norm against PyTorch's: values, gradients, memory format, and what is kept for backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.models.layers import normalization
from diffux2ct.models.layers.normalization import GroupNorm, GroupNormSiLU, num_groups

SHAPES = [(2, 64, 4, 6, 5), (3, 24, 5, 4, 6), (2, 64, 6, 5), (1, 8, 3)]


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (96, 32), (160, 32), (640, 32), (48, 16), (32, 16), (16, 8), (40, 8), (3, 1)]
)
def test_number_of_groups(channels: int, groups: int):
    assert num_groups(channels) == groups
    assert channels % groups == 0
    assert channels // groups >= 2


def channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def make(kind: type[GroupNorm], shape: tuple[int, ...], seed: int = 0) -> tuple[GroupNorm, Tensor, Tensor]:
    """A norm with weights that matter, an input far from zero mean, and a gradient of its output."""
    torch.manual_seed(seed)
    norm = kind(shape[1])
    torch.nn.init.normal_(norm.weight, mean=1, std=0.3)
    torch.nn.init.normal_(norm.bias, std=0.3)
    return norm, torch.randn(shape) * 3 + 2, torch.randn(shape)


def plain(norm: GroupNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, and gradients of input, weight and bias, by PyTorch's own operations in fp64."""
    x, weight, bias = (v.detach().double().requires_grad_() for v in (x, norm.weight, norm.bias))
    y = F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
    y = F.silu(y) if isinstance(norm, GroupNormSiLU) else y
    return [y, *torch.autograd.grad(y, (x, weight, bias), grad.double())]


def ours(norm: GroupNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = norm(x)
    return [y, *torch.autograd.grad(y, (x, norm.weight, norm.bias), grad.to(y.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
def test_values_and_gradients_are_group_norm_s(kind: type[GroupNorm], last: bool, shape: tuple[int, ...]):
    norm, x, grad = make(kind, shape)
    x = channels_last(x) if last else x
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), ours(norm, x, grad), plain(norm, x, grad), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm() + 1e-6, name


def test_strided_input():
    norm, x, grad = make(GroupNormSiLU, (2, 16, 4, 6, 5))
    for view in (x[..., ::2], channels_last(x)[:, :, 1:3], x.transpose(2, 3)[:, :, :3], x[:1].expand_as(x)):
        part = grad.flatten()[: view.numel()].view(view.shape)
        for a, b in zip(ours(norm, view, part), plain(norm, view, part), strict=True):
            assert (a - b).norm() < 1e-5 * b.norm() + 1e-6


@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
def test_gradients_are_those_of_finite_differences(kind: type[GroupNorm]):
    norm, x, _ = make(kind, (2, 8, 3, 2, 4))
    leaves = [v.detach().double().requires_grad_() for v in (channels_last(x), norm.weight, norm.bias)]
    args = norm.num_groups, norm.eps, norm.activation
    assert torch.autograd.gradcheck(lambda *v: normalization._Normalize.apply(*v, *args), leaves)


@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
def test_bf16_is_as_exact_as_pytorch_s_own(kind: type[GroupNorm]):
    """Of inputs already in bf16: errors no larger than those of the plain operations in bf16, and not zero."""
    norm, x, grad = make(kind, (2, 64, 8, 8, 8))
    x, grad = channels_last(x).bfloat16(), channels_last(grad).bfloat16()
    exact = plain(norm, x, grad)
    with torch.autocast("cpu", torch.bfloat16):
        mine = ours(norm, x, grad)
    leaves = [v.detach().bfloat16().requires_grad_() for v in (x, norm.weight, norm.bias)]
    y = F.group_norm(leaves[0], norm.num_groups, *leaves[1:], norm.eps)
    y = F.silu(y) if kind is GroupNormSiLU else y
    theirs = [y, *torch.autograd.grad(y, leaves, grad)]
    assert mine[0].dtype == mine[1].dtype == torch.bfloat16
    assert mine[2].dtype == mine[3].dtype == torch.float32
    for name, a, b, reference in zip(("y", "dx", "dweight", "dbias"), mine, theirs, exact, strict=True):
        error = (a.double() - reference).norm()
        assert 0 < error <= 1.05 * (b.double() - reference).norm(), name


@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format_is_the_input_s_also_where_the_gradient_comes_in_another(kind, dtype: torch.dtype):
    norm, x, grad = make(kind, (2, 16, 4, 4, 4))
    x, grad = x.to(dtype), grad.to(dtype)
    y, dx, *sums = ours(norm, channels_last(x), grad)
    assert y.stride() == dx.stride() == channels_last(x).stride()
    y, dx_contiguous, *sums_contiguous = ours(norm, x, channels_last(grad))
    assert y.stride() == dx_contiguous.stride() == x.stride()
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.03}
    torch.testing.assert_close(dx, dx_contiguous, **close)
    torch.testing.assert_close(sums, sums_contiguous, rtol=0.01, atol=0.02)


def test_nothing_but_the_input_and_the_statistics_is_kept_for_backward():
    norm, x, _ = make(GroupNormSiLU, (2, 16, 8, 8, 8))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        norm(x.requires_grad_())
    assert x.numel() <= sum(kept) < 1.1 * x.numel()


@pytest.mark.parametrize("last", [False, True])
def test_formulas_for_cuda(last: bool):
    """They run on any device, and are held to PyTorch's on this one."""
    norm, x, grad = make(GroupNorm, (2, 24, 4, 6, 5))
    x, grad = (channels_last(v) if last else v for v in (x, grad))
    with torch.no_grad():
        y, mean, rstd = normalization.normalize_by_parts(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        expected = torch.native_group_norm(x, norm.weight, norm.bias, 2, 24, 120, norm.num_groups, norm.eps)
        for a, b in zip((y, mean, rstd), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        stats = [s.repeat_interleave(24 // norm.num_groups, dim=1) for s in (mean, rstd)]
        sums = normalization.channel_sums(grad, x, *stats)
        by_products = normalization.sums_by_products(grad, x, *stats)
    torch.testing.assert_close(sums, by_products, rtol=1e-4, atol=1e-3)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("slab", [2**24, 300])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formulas_for_cuda_far_from_zero(monkeypatch, dtype: torch.dtype, last: bool, slab: int):
    """A mean of ten deviations: no difference of large numbers may carry the result. Of inputs already rounded."""
    monkeypatch.setattr(normalization, "_SLAB", slab)
    norm, x, grad = make(GroupNorm, (2, 64, 8, 6, 7))
    x, grad = ((channels_last(v) if last else v).to(dtype) for v in (x - 2 + 30, grad))
    assert len(normalization.slabs(x)) == (1 if slab > x.numel() else 8)
    y, _, dweight, dbias = plain(norm, x, grad)
    with torch.no_grad():
        mine, mean, rstd = normalization.normalize_by_parts(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        stats = [s.repeat_interleave(64 // norm.num_groups, dim=1) for s in (mean, rstd)]
        sums, sums_xhat = normalization.sums_by_products(grad, x, *stats)
    assert mean.dtype == rstd.dtype == sums.dtype == sums_xhat.dtype == torch.float32
    assert mine.dtype == dtype
    assert mine.stride() == x.stride()
    grouped = x.double().reshape(2, norm.num_groups, -1)
    torch.testing.assert_close(mean.double(), grouped.mean(2), rtol=1e-6, atol=0)
    expected = (grouped.var(2, correction=0) + norm.eps).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=2e-6, atol=0)
    rounding = 2e-6 if dtype == torch.float32 else 2e-3
    assert (mine - y).norm() < rounding * y.norm()
    assert (sums_xhat.sum(0) - dweight).norm() < 2e-6 * dweight.norm()
    assert (sums.sum(0) - dbias).norm() < 2e-6 * dbias.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
def test_on_a_gpu(kind: type[GroupNorm]):
    norm, x, grad = make(kind, (2, 64, 8, 8, 8))
    exact = plain(norm, x, grad)
    y, dx, *rest = ours(norm.cuda(), channels_last(x).cuda(), grad.cuda())
    assert y.stride() == dx.stride() == channels_last(x).stride()
    for a, b in zip((y, dx, *rest), exact, strict=True):
        assert (a.cpu() - b).norm() < 1e-4 * b.norm()
