import torch
from torch import nn

from diffux2ct.training.state import Ema


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
