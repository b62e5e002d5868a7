import copy

import pytest
import torch
from torch import nn

from diffux2ct import build
from diffux2ct.errors import UserError
from diffux2ct.training.optimizers.muon import Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (64, 9)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values[s > 0.05 * s[0]].min()) < 1
    assert 1 < float(values.max()) < 1.25
    cosine = (found * (u @ v)).sum() / found.norm() / (u @ v).norm()
    assert 0.97 < float(cosine) <= 1.0001


def test_torch_s_own_muon_takes_the_same_steps_on_matrices():
    """Its rate is adjusted as ours where it is said to match Adam's."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(24, 40))
    theirs = nn.Parameter(ours.detach().clone())
    first = Muon([ours], lr=0.01)
    second = torch.optim.Muon([theirs], lr=0.01, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(24, 40)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    # Theirs iterates in bfloat16: three digits.
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=5e-4)


def test_narrow_weights_are_stepped_as_by_adam():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(1, 4, 3, 3, 3))]
    assert not any(is_matrix(p) for p in ours)
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    first, second = Muon(ours, lr=0.01, weight_decay=0.1), torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for _ in range(4):
        for a, b, scale in zip(ours, theirs, (1.0, 1e-8), strict=True):  # one so small that eps counts
            a.grad = scale * torch.randn_like(a)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_matrices_have_eight_rows_and_columns_or_more():
    shapes = [(8, 8), (8, 1, 2, 2, 2), (7, 30), (30, 7), (64,)]
    assert [is_matrix(torch.zeros(shape)) for shape in shapes] == [True, True, False, False, False]


def test_a_step_returns_the_loss_of_its_closure_with_new_gradients():
    weight = nn.Parameter(torch.ones(3))

    def closure() -> float:
        loss = weight.sum()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        return float(loss)

    assert Muon([weight], lr=0.5).step(closure) == 3
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.5))


def test_a_convolution_is_a_matrix_of_its_outputs_and_its_step_is_as_large_as_adam_s():
    torch.manual_seed(0)
    conv = nn.Conv3d(8, 16, 3)
    before = conv.weight.detach().clone()
    conv.weight.grad = torch.randn_like(conv.weight) * 1e-4
    Muon(conv.parameters(), lr=1e-3).step()
    step = (conv.weight - before).flatten(1) / 1e-3
    assert 0.15 < float(step.square().mean().sqrt()) < 0.25
    assert 0.8 < float(torch.linalg.svdvals(step).min() / (0.2 * 216**0.5 * 0.85)) < 1.3


def test_adam_steps_biases_norms_and_narrow_weights_of_the_model(compose):
    model = build.build_reconstructor(compose("model=posterior_flow"))
    narrow = {name.rpartition(".")[2] for name, p in model.named_parameters() if not is_matrix(p) and p.ndim > 1}
    assert narrow <= {"weight", "relative_bias"}
    wide = [name for name, p in model.named_parameters() if is_matrix(p)]
    assert "mean.unet.out.weight" in wide  # eight outputs, a patch
    assert "mean.fine.weight" not in wide  # one
    assert not any("relative_bias" in name or name.endswith("bias") for name in wide)
    assert len(wide) > 100


def test_its_state_is_restored_to_the_same_steps():
    torch.manual_seed(0)
    layer = nn.Linear(16, 12)
    optimizer = Muon(layer.parameters())

    def steps(model: nn.Module, by: Muon, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            by.step()

    steps(layer, optimizer, 1)
    other = copy.deepcopy(layer)
    resumed = Muon(other.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(layer, optimizer, 2)
    steps(other, resumed, 2)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


@pytest.mark.parametrize("settings", [{"lr": -1}, {"momentum": 1}, {"betas": (0.9, 2)}, {"weight_decay": -0.1}])
def test_values_out_of_range_get_one_line(settings):
    with pytest.raises(UserError, match=f"^optim.{next(iter(settings))}=.*must"):
        Muon([nn.Parameter(torch.zeros(2))], **settings)
