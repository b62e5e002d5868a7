import pytest
import torch

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers import ddim_step, ddpm_step, inference_timesteps, sample
from diffux2ct.errors import UserError


def noises(seed: int, shape=(1, 1, 8, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def test_timesteps_start_at_the_end_and_cover_the_range():
    assert inference_timesteps(1000, 1000) == list(range(999, -1, -1))
    assert inference_timesteps(1000, 4) == [999, 749, 499, 249]
    assert inference_timesteps(1000, 1) == [999]
    with pytest.raises(UserError, match="num_inference_steps=0"):
        inference_timesteps(1000, 0)
    with pytest.raises(UserError, match="num_inference_steps=11"):
        inference_timesteps(10, 11)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("steps", [5, 50])
def test_an_oracle_network_leads_to_its_volume(name, kind, steps):
    # A network that knows x_0 says at every step what agrees with it; every sampler must then arrive there.
    process = DiffusionProcess(prediction_type=kind)
    x_0 = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9

    def oracle(x_t, t):
        return process.target(x_0, process.noise_from_x0(x_0, x_t, t), t)

    draw = noises(0)
    out = sample(oracle, process, draw(), name=name, num_inference_steps=steps, draw_noise=draw)
    torch.testing.assert_close(out, x_0, rtol=0, atol=2e-3)


def test_ddpm_step_has_the_posterior_s_mean_and_variance():
    # Independent reference: Bayes' rule on the two Gaussians q(x_{t-1} | x_0) and q(x_t | x_{t-1}).
    a_t, a_prev = torch.tensor(0.5), torch.tensor(0.6)
    x_0, x_t = torch.full((1, 1, 32, 32, 32), 0.3), torch.full((1, 1, 32, 32, 32), -0.8)
    alpha, beta = a_t / a_prev, 1 - a_t / a_prev
    precision = 1 / (1 - a_prev) + alpha / beta
    mean = (a_prev.sqrt() * x_0 / (1 - a_prev) + alpha.sqrt() * x_t / beta) / precision
    torch.testing.assert_close(ddpm_step(x_0, x_t, a_t, a_prev, None), mean)
    drawn = ddpm_step(x_0, x_t, a_t, a_prev, noises(0, x_0.shape)())
    torch.testing.assert_close(drawn.var(), 1 / precision, rtol=0.03, atol=0)
    torch.testing.assert_close(drawn.mean(), mean.mean(), rtol=0, atol=0.01)


def test_ddim_with_eta_one_is_ddpm():
    a_t, a_prev = torch.tensor(0.4), torch.tensor(0.55)
    draw = noises(4)
    x_0, x_t, noise = draw(), draw(), draw()
    torch.testing.assert_close(
        ddim_step(x_0, x_t, a_t, a_prev, noise, eta=1.0),
        ddpm_step(x_0, x_t, a_t, a_prev, noise),
        rtol=1e-4,
        atol=1e-5,
    )


def test_ddim_depends_on_its_start_only_and_ddpm_on_its_draws_too():
    process = DiffusionProcess()

    def network(x_t, t):
        return 0.5 * x_t + 0.1

    start = noises(0)()

    def run(name, seed):
        return sample(network, process, start, name=name, num_inference_steps=10, draw_noise=noises(seed))

    torch.testing.assert_close(run("ddim", 1), run("ddim", 2), rtol=0, atol=0)
    torch.testing.assert_close(run("ddpm", 1), run("ddpm", 1), rtol=0, atol=0)
    assert (run("ddpm", 1) - run("ddpm", 2)).abs().max() > 1e-3


def test_unknown_sampler_is_named():
    with pytest.raises(UserError, match=r"sampler\.name=euler"):
        sample(lambda x, t: x, DiffusionProcess(), noises(0)(), name="euler", draw_noise=noises(0))
