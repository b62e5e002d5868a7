import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.models.baselines.vnet import ResidualStage, VNet


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_published_network():
    """Counted by hand from the authors' prototxt (with biases, a PReLU slope a channel), for five classes."""

    def conv(inputs: int, outputs: int, width: int) -> int:
        return inputs * outputs * width**3 + outputs

    left = [(16, 1, 1), (32, 1, 32), (64, 2, 64), (128, 3, 128), (256, 3, 256)]
    right = [(256, 3, 256), (128, 2, 128), (64, 1, 64), (32, 1, 32)]
    stages = sum(conv(inputs, c, 5) + (n - 1) * conv(c, c, 5) + n * c for c, n, inputs in left + right)
    down = sum(conv(c, 2 * c, 2) + 2 * c for c in (16, 32, 64, 128))
    up = sum(conv(below, c, 2) + c for below, c in ((256, 128), (256, 64), (128, 32), (64, 16)))
    out = conv(32, 5, 5) + 5 + conv(5, 5, 1)
    with torch.device("meta"):
        assert count(VNet(5)) == stages + down + up + out == 61_994_712
        assert count(VNet(5, norm="group")) == 61_999_608


@pytest.mark.parametrize("norm", ["none", "group"])
def test_shapes_and_gradients(norm):
    torch.manual_seed(0)
    network = VNet(3, channels=(4, 8, 8), num_convs=(1, 2, 2), norm=norm)
    logits = network(torch.rand(2, 1, 8, 12, 16))
    assert logits.shape == (2, 3, 8, 12, 16)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_stage_learns_a_residual():
    stage = ResidualStage(4, 2)
    torch.nn.init.zeros_(stage.convs[-1].weight)
    torch.nn.init.zeros_(stage.convs[-1].bias)
    x = torch.rand(1, 4, 5, 5, 5)
    torch.testing.assert_close(stage(x), x)
    first = ResidualStage(4, 1, in_channels=1)
    torch.nn.init.zeros_(first.convs[0].weight)
    torch.nn.init.zeros_(first.convs[0].bias)
    torch.testing.assert_close(first(x[:, :1]), x[:, :1].expand(-1, 4, -1, -1, -1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="multiple of 4"):
        VNet(2, channels=(4, 4, 4), num_convs=(1, 1, 1))(torch.rand(1, 1, 8, 8, 10))
    with pytest.raises(UserError, match="norm=batch: no such choice; choose from none, group"):
        VNet(2, norm="batch")
    with pytest.raises(UserError, match="2 channels and 1 num_convs"):
        VNet(2, channels=(4, 4), num_convs=(1,))
