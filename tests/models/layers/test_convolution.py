import pytest
import torch
from torch import nn

from diffux2ct.models.layers.blocks import Conv3d


@pytest.mark.parametrize(("kernel", "sides"), [(3, (2, 2, 2)), (5, (4, 4, 4)), (5, (4, 8, 8)), (3, (8, 8, 8))])
def test_gradients_in_bf16_are_near_those_in_fp32(kernel, sides):
    torch.manual_seed(0)
    conv = Conv3d(16, 16, kernel, padding=kernel // 2)
    x, weight = torch.randn(2, 16, *sides), torch.randn(2, 16, *sides)

    def gradient(bf16: bool) -> torch.Tensor:
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = conv(x)
        (y.float() * weight).sum().backward()
        assert conv.weight.grad is not None
        return conv.weight.grad.clone()

    expected = gradient(bf16=False)
    error = (gradient(bf16=True) - expected).abs().max() / expected.abs().max()
    assert error < 0.05


def test_it_is_torch_s_convolution():
    torch.manual_seed(0)
    ours, theirs = Conv3d(2, 3, 3, stride=2, padding=1), nn.Conv3d(2, 3, 3, stride=2, padding=1)
    theirs.load_state_dict(ours.state_dict())
    for side in (1, 2, 6):
        x = torch.randn(1, 2, side, side, side)
        assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(1, 2, 6, 6, 6)).dtype == torch.bfloat16
