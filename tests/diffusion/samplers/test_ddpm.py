import torch
from tests.diffusion.samplers.draws import noises

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers.ddpm import Ddpm
from diffux2ct.diffusion.samplers.sampling import Step, sample


def test_a_step_has_the_posterior_s_mean_and_variance():
    # Independent reference: Bayes' rule on the two Gaussians q(x_{t-1} | x_0) and q(x_t | x_{t-1}).
    a_t, a_prev = torch.tensor(0.5), torch.tensor(0.6)
    x_0, x_t = torch.full((1, 1, 32, 32, 32), 0.3), torch.full((1, 1, 32, 32, 32), -0.8)
    alpha, beta = a_t / a_prev, 1 - a_t / a_prev
    precision = 1 / (1 - a_prev) + alpha / beta
    mean = (a_prev.sqrt() * x_0 / (1 - a_prev) + alpha.sqrt() * x_t / beta) / precision
    torch.testing.assert_close(Ddpm().step(Step(x_t, x_0, a_t, a_prev, lambda: 0 * x_t)), mean)
    drawn = Ddpm().step(Step(x_t, x_0, a_t, a_prev, noises(0, x_0.shape)))
    torch.testing.assert_close(drawn.var(), 1 / precision, rtol=0.03, atol=0)
    torch.testing.assert_close(drawn.mean(), mean.mean(), rtol=0, atol=0.01)


def test_volumes_depend_on_the_draws():
    start = noises(0)()

    def run(seed):
        return sample(lambda x, t: 0.5 * x + 0.1, DiffusionProcess(), Ddpm(10), start, noises(seed))

    torch.testing.assert_close(run(1), run(1), rtol=0, atol=0)
    assert (run(1) - run(2)).abs().max() > 1e-3
