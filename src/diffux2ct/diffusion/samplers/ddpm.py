"""Ancestral sampling, the paper's (Ho et al. 2020)."""

from collections.abc import Callable

from torch import Tensor

from diffux2ct.diffusion.samplers.sampling import Sampler
from diffux2ct.types import Volume


class Ddpm(Sampler):
    """Draws x_{t-1} from the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 6-7; variance beta-tilde)."""

    def step(self, x_0: Volume, x_t: Volume, a_t: Tensor, a_prev: Tensor, draw_noise: Callable[[], Tensor]) -> Volume:
        """The posterior's mean, plus noise of its variance."""
        beta = 1 - a_t / a_prev
        mean = (a_prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - a_prev) * x_t) / (1 - a_t)
        return mean + ((1 - a_prev) / (1 - a_t) * beta).sqrt() * draw_noise()
