"""Ancestral sampling, the paper's (Ho et al. 2020)."""

from diffux2ct.diffusion.samplers.sampling import Sampler, Step
from diffux2ct.types import Volume


class Ddpm(Sampler):
    """Draws x_{t-1} from the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 6-7; variance beta-tilde)."""

    def step(self, now: Step) -> Volume:
        """The posterior's mean, plus noise of its variance."""
        x_t, x_0, a_t, a_prev = now.x_t, now.x_0, now.a_t, now.a_prev
        beta = 1 - a_t / a_prev
        mean = (a_prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - a_prev) * x_t) / (1 - a_t)
        return mean + ((1 - a_prev) / (1 - a_t) * beta).sqrt() * now.draw_noise()
