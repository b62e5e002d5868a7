import pytest
import torch

from diffux2ct import build
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.diffusion.samplers.ddpm import Ddpm
from diffux2ct.errors import UserError
from diffux2ct.reconstructors.base import seeded_integers, seeded_normal

CPU = torch.device("cpu")


@pytest.fixture
def model(compose):
    torch.manual_seed(0)
    model = build.build_reconstructor(compose())
    # The last convolution starts at zero; give it something to say, so that inputs can matter.
    torch.nn.init.normal_(model.denoiser.out.weight, std=0.1)
    return model.eval()


def xrays(seed: int, batch: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return {view: torch.rand(batch, 1, 16, 16, generator=generator) * 2 - 1 for view in ("frontal", "lateral")}


def reconstruct(model, inputs, seed=0, **settings):
    settings = {"sampler": Ddim(4)} | settings
    with torch.no_grad():
        return model.reconstruct(inputs, generator=torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("sampler", [Ddim(4), Ddpm(4)])
def test_one_seed_gives_one_volume_and_another_another(model, sampler):
    first, again, other = (reconstruct(model, xrays(0), seed, sampler=sampler) for seed in (1, 1, 2))
    assert first.shape == (1, 1, 16, 16, 16)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 1e-3
    assert first.abs().max() <= 1


def test_both_xrays_matter_and_so_does_their_order(model):
    inputs = xrays(0)
    swapped = {"frontal": inputs["lateral"], "lateral": inputs["frontal"]}
    base = reconstruct(model, inputs)
    for changed in ({**inputs, "frontal": xrays(5)["frontal"]}, {**inputs, "lateral": xrays(5)["lateral"]}, swapped):
        assert (reconstruct(model, changed) - base).abs().max() > 1e-4


def test_perturbation_is_zero_or_drawn_and_matters(model):
    seen = []
    model.conditioning.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    a, b = (reconstruct(model, xrays(0), perturbation=p) for p in ("zero", "random"))
    assert seen[0].abs().max() == 0
    assert 0.5 < float(seen[1].std()) < 1.5
    assert (a - b).abs().max() > 1e-6  # the start is the same: it is drawn after z in both
    with pytest.raises(UserError, match="perturbation=zeros"):
        reconstruct(model, xrays(0), perturbation="zeros")


def test_conditions_are_computed_once_per_volume(model):
    calls = []
    model.conditioning.register_forward_hook(lambda *_: calls.append(1))
    reconstruct(model, xrays(0))
    assert len(calls) == 1


def test_loss_of_a_sample_does_not_depend_on_its_batch(model):
    batch = {"volume": torch.rand(3, 1, 16, 16, 16) * 2 - 1, **xrays(0, 3), "seed": torch.tensor([5, 6, 7])}
    with torch.no_grad():
        joint = model("diffusion", batch)["simple"]
        single = [model("diffusion", {k: v[i : i + 1] for k, v in batch.items()})["simple"] for i in range(3)]
    torch.testing.assert_close(joint, torch.stack(single).mean(), rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(model):
    batch = {"volume": torch.rand(2, 1, 16, 16, 16) * 2 - 1, **xrays(0, 2), "seed": torch.tensor([5, 6])}
    (objective,) = model.objectives()
    objective.loss(batch)["total"].backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert sum(p.numel() for p in objective.parameters) == sum(p.numel() for p in model.parameters())


def test_seeded_draws_follow_their_seed_not_their_place():
    a = seeded_normal((2, 3), torch.tensor([1, 2]), CPU)
    b = seeded_normal((2, 3), torch.tensor([2, 1]), CPU)
    torch.testing.assert_close(a, b.flip(0), rtol=0, atol=0)
    assert (seeded_normal((2, 3), torch.tensor([1, 2]), CPU, salt=1) - a).abs().min() > 0
    draws = seeded_integers(10, torch.arange(500), CPU)
    assert set(draws.tolist()) == set(range(10))


def test_the_model_s_own_perturbation_and_steps_complete_the_settings(model):
    model.perturbation = "zero"
    given = Ddpm()
    settings = model.complete({"sampler": given, "perturbation": None, "temperature": 1})
    assert settings["sampler"].num_inference_steps == model.process.num_train_timesteps
    assert (set(settings), settings["perturbation"]) == ({"sampler", "perturbation"}, "zero")
    assert given.num_inference_steps is None
    seen = []
    model.conditioning.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    reconstruct(model, xrays(0))
    assert seen[0].abs().max() == 0


@pytest.mark.parametrize("timesteps", [5, [99, 749, 999]])
def test_timesteps_are_those_that_are_trained_and_by_default_sampled(compose, timesteps):
    override = f"diffusion.timesteps={timesteps}".replace(" ", "")
    model = build.build_reconstructor(compose(override)).eval()
    seen = []
    model.denoiser.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1].tolist()))
    data = {"volume": torch.zeros(20, 1, 16, 16, 16), **xrays(0, 20), "seed": torch.arange(20)}
    with torch.no_grad():
        model("diffusion", data)
    trained = [199, 399, 599, 799, 999] if timesteps == 5 else timesteps
    assert sorted(set(seen)) == trained
    seen.clear()
    reconstruct(model, xrays(0), **model.complete({"sampler": Ddpm()}))
    assert seen == trained[::-1]
    seen.clear()
    reconstruct(model, xrays(0), sampler=None)
    assert seen == trained[::-1]
    with pytest.raises(UserError, match="num_inference_steps=6"):
        model.complete({"sampler": Ddim(6)})


def test_settings_that_the_method_does_not_have_are_refused(model):
    with pytest.raises(TypeError, match="temperature"):
        reconstruct(model, xrays(0), temperature=2.0)
