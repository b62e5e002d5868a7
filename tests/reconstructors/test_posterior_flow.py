import pytest
import torch
from torch import nn

from diffux2ct import build
from diffux2ct.errors import UserError
from diffux2ct.reconstructors.base import xrays_of
from diffux2ct.reconstructors.cost import reconstruction_cost
from diffux2ct.xray.camera import camera_preset

SIZE = 16


@pytest.fixture
def model(compose):
    torch.manual_seed(0)
    made = build.build_reconstructor(compose("model=posterior_flow"))
    for part in (made.mean, made.flow):
        nn.init.normal_(part.unet.out.weight, std=0.05)  # it starts at 0
    return made.eval()


def batch(num: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(num, 1, *shape, generator=generator) * 2 - 1  # noqa: E731
    camera = torch.tensor([camera_preset("lumbar", SIZE, 16.0).panel_map(256.0)] * num)
    return {
        "volume": draw(SIZE, SIZE, SIZE),
        "frontal": draw(SIZE, SIZE),
        "lateral": draw(SIZE, SIZE),
        "camera": camera,
        "seed": torch.arange(num),
    }


def test_the_mean_is_trained_on_the_squared_error_of_the_first_steps_and_the_flow_in_the_rest(model):
    mean, flow = model.objectives()
    assert (mean.name, mean.during, flow.name, flow.during) == ("mean", (0.0, 0.5), "flow", (0.5, 1.0))
    shared = {id(p) for p in mean.parameters} & {id(p) for p in flow.parameters}
    assert not shared
    assert len(mean.parameters) + len(flow.parameters) == len(list(model.parameters()))
    data = batch()
    with torch.no_grad():
        error = (model._mean(xrays_of(data)) - data["volume"]).square().mean()
    torch.testing.assert_close(mean.loss(data)["total"], error)


def test_norm_l1_trains_the_mean_on_the_absolute_error(compose):
    torch.manual_seed(0)
    made = build.build_reconstructor(compose("model=posterior_flow", "model.norm=l1")).eval()
    data = batch()
    losses = made.objectives()[0].loss(data)
    with torch.no_grad():
        torch.testing.assert_close(losses["l1"], (made._mean(xrays_of(data)) - data["volume"]).abs().mean())


def test_the_flow_learns_the_straight_way_from_the_noisy_mean_and_leaves_the_mean_alone(model):
    data, seen = batch(1), []
    model.flow.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    loss = model.objectives()[1].loss(data)["total"]
    (both, time, _), *_ = seen
    t = float(time) / 1000
    b = (1 - t) ** 2 + t**2
    mean, d = both[:, 1:], both[:, :1] * 0.06 * b**0.5
    x_0 = (mean + d - t * data["volume"]) / (1 - t)  # x_t = (1 - t) x_0 + t x_1
    assert 0 < t < 1
    assert abs(float((x_0 - mean).std()) - 0.06) < 0.006
    with torch.no_grad():
        torch.testing.assert_close(mean, model._mean(xrays_of(data)))
        output = model.flow(both, time, model.flow_conditioning(xrays_of(data)))
    velocity = (2 * t - 1) / b * d + 0.06 / b**0.5 * output
    torch.testing.assert_close(loss, (velocity - (data["volume"] - x_0)).square().mean(), rtol=1e-4, atol=1e-6)
    loss.backward()
    assert all(p.grad is None for p in model.mean.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.flow_conditioning.parameters())


def test_a_sample_s_loss_depends_on_its_seed_and_not_on_its_place_in_the_batch(model):
    data = batch()
    for objective in model.objectives():
        together = objective.loss(data)["total"]
        alone = [objective.loss({key: value[i : i + 1] for key, value in data.items()})["total"] for i in range(2)]
        torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-4, atol=1e-6)
    other = model.objectives()[1].loss(data | {"seed": torch.tensor([7, 8])})["total"]
    assert (other - model.objectives()[1].loss(data)["total"]).abs() > 1e-5


def test_outputs_are_the_mean_samples_their_mean_and_blends(model):
    xrays = xrays_of(batch())
    model.flow_trained.fill_(True)

    def ct(seed: int = 3, **settings) -> torch.Tensor:
        with torch.no_grad():
            return model.reconstruct(xrays, generator=torch.Generator().manual_seed(seed), **settings)

    mean, sample = ct(output="mean"), ct(output="sample")
    assert torch.equal(mean, ct(4, output="mean"))
    assert mean.abs().max() <= 1
    assert torch.equal(sample, ct())
    assert not torch.equal(sample, ct(4))
    with torch.no_grad():
        draws = model.samples(xrays, model._mean(xrays), 3, 2, torch.Generator().manual_seed(3))
    torch.testing.assert_close(draws[0], sample)
    assert (draws[0] - draws[1]).abs().max() > 0.01  # each has its own noise
    torch.testing.assert_close(ct(output="ensemble", num_samples=3), draws.mean(0))
    assert torch.equal(ct(blend=0), mean)
    torch.testing.assert_close(ct(blend=0.25), 0.75 * mean + 0.25 * sample)
    assert not torch.equal(ct(num_inference_steps=1), sample)


def test_a_sample_of_one_step_is_the_velocity_at_the_noisy_mean_by_the_flow_s_own_features(model):
    xrays = xrays_of(batch(1))
    with torch.no_grad():
        mean = model._mean(xrays) + 0.5  # some voxels leave [-1, 1]
        x = mean + 0.06 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
        moved = x + model._velocity(x, torch.zeros(1), mean, model.flow_conditioning(xrays))
        made = model.samples(xrays, mean, 1, 1, torch.Generator().manual_seed(1))[0]
    assert moved.max() > 1
    torch.testing.assert_close(made, moved.clamp(-1, 1))


def test_every_output_ends_where_consistency_puts_the_ct(model):
    xrays, seen = xrays_of(batch()), []
    model.flow_trained.fill_(True)

    def correct(volume: torch.Tensor) -> torch.Tensor:
        seen.append(volume)
        return torch.full_like(volume, 0.25 * len(seen))

    with torch.no_grad():
        mean = model._mean(xrays)
        torch.testing.assert_close(model.reconstruct(xrays, output="mean", consistency=correct), 0 * mean + 0.25)
        torch.testing.assert_close(seen[0], mean)
        made = model.reconstruct(xrays, num_inference_steps=2, consistency=correct)
        torch.testing.assert_close(made, 0 * mean + 0.75)
        made = model.reconstruct(xrays, num_inference_steps=1, blend=0.5, consistency=lambda volume: 0 * volume + 0.5)
        torch.testing.assert_close(made, 0 * mean + 0.5)
    assert len(seen) == 3
    own = model.complete({"output": "mean", "blend": 0.5, "consistency": correct})
    assert own == {"output": "mean", "consistency": correct}


def draws_of_a_constant(model, value: float, *steps: int) -> list[torch.Tensor]:
    """The mean, the noise on it and a draw for each number of steps, where the flow's network gives ``value``."""
    xrays, model.sigma = xrays_of(batch(1)), 0.02
    for parameter in (*model.flow.unet.out.parameters(), *model.flow.fine.parameters()):
        nn.init.zeros_(parameter)
    nn.init.constant_(model.flow.unet.out.bias, value)
    with torch.no_grad():
        mean = model._mean(xrays).clamp(-0.9, 0.9)
        noise = 0.02 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
        draws = [model.samples(xrays, mean, 1, n, torch.Generator().manual_seed(1))[0] for n in steps]
    return [mean, noise, *draws]


def test_without_a_network_residuals_end_as_large_as_the_noise(model):
    """The best linear guess carries N(0, sigma^2) into N(0, sigma^2): each voxel's noise comes back at t = 1."""
    mean, noise, made = draws_of_a_constant(model, 0.0, 40)
    torch.testing.assert_close(made, mean + noise, rtol=0, atol=0.04 * float(noise.abs().max()))


def test_steps_are_euler_s_at_even_times(model):
    mean, noise, one, two = draws_of_a_constant(model, 0.5, 1, 2)
    torch.testing.assert_close(one, mean + 0.02 * 0.5, rtol=0, atol=1e-5)  # at t = 0: v = -noise + sigma * output
    half = noise + 0.5 * (-noise + 0.02 * 0.5)  # at t = 1/2: v = 0 d + sigma sqrt(2) * output
    torch.testing.assert_close(two, mean + half + 0.5 * 0.02 * 2**0.5 * 0.5, rtol=0, atol=1e-5)


def test_before_the_flow_is_trained_there_is_a_mean_only(model):
    xrays = xrays_of(batch(1))
    assert torch.equal(model.reconstruct(xrays), model.reconstruct(xrays, output="mean"))
    with pytest.raises(UserError, match="not trained yet.*50%"):
        model.reconstruct(xrays, output="sample")
    model.objectives()[1].loss(batch(1))
    assert model.flow_trained
    assert model.state_dict()["flow_trained"]
    assert model.complete({}) == {"output": "sample", "num_inference_steps": 2}
    assert model.complete({"output": "mean", "num_inference_steps": 9}) == {"output": "mean"}
    assert model.complete({"output": "ensemble", "blend": 0.5})["num_samples"] == 8


def test_a_reconstruction_s_cost_is_counted_without_values(model):
    cost = reconstruction_cost(model.to("meta"), SIZE)
    assert cost.tflop > 0
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_wrong_settings_get_one_line(model, compose):
    model.flow_trained.fill_(True)
    xrays = xrays_of(batch(1))
    for settings, words in (
        ({"output": "median"}, "output=median: choose mean, sample, ensemble"),
        ({"blend": 2}, "blend=2"),
        ({"num_inference_steps": -1}, "num_inference_steps=-1"),
        ({"output": "ensemble", "num_samples": -2}, "num_samples=-2"),
    ):
        with pytest.raises(UserError, match=words):
            model.reconstruct(xrays, **settings)
    for override in ("model.flow_after=1", "model.sigma=0", "model.num_samples=0", "unet.in_channels=3"):
        with pytest.raises(UserError, match=override.partition(".")[2].partition("=")[0]):
            build.build_reconstructor(compose("model=posterior_flow", override))
