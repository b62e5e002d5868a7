import torch
from torch import nn

from diffux2ct.training.state import Ema, own_part


def test_average_follows_the_formula_with_warm_up():
    model = nn.Linear(2, 1)
    ema, expected = Ema(model, decay=0.5), model.weight.detach().clone()
    for n in range(8):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.average["weight"], expected)


def test_applied_weights_are_put_back_and_state_round_trips():
    model = nn.Linear(2, 1)
    ema, own = Ema(model, 0.9), model.weight.detach().clone()
    ema.average["weight"].fill_(7.0)
    with ema.applied_to(model):
        assert (model.weight == 7).all()
    assert torch.equal(model.weight, own)
    other = Ema(model, 0.9)
    other.load_state_dict(ema.state_dict())
    assert (other.average["weight"] == 7).all()


def test_moments_take_the_memory_layout_of_their_weights_for_fused_kernels():
    """A sharded run saves them contiguous; one process goes on with channels_last weights and fused Adam."""

    def network():
        torch.manual_seed(0)
        conv = torch.nn.Conv3d(4, 4, 3)
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
        return conv, torch.optim.Adam(conv.parameters(), 1e-2, fused=True)

    def step(conv, optimizer, seed):
        optimizer.zero_grad()
        conv(torch.randn(1, 4, 5, 5, 5, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    conv, optimizer = network()
    step(conv, optimizer, 1)
    saved = optimizer.state_dict()
    for values in saved["state"].values():
        values.update({key: value.clone().contiguous() for key, value in values.items()})
    other, resumed = network()
    other.load_state_dict(conv.state_dict())
    resumed.load_state_dict(own_part(saved, resumed))
    assert resumed.state[other.weight]["exp_avg"].stride() == other.weight.stride()
    conv, optimizer = network()
    for seed in (1, 2):
        step(conv, optimizer, seed)
    step(other, resumed, 2)
    assert torch.equal(other.weight, conv.weight)
