"""Denoising diffusion implicit models: fewer steps than DDPM (Song et al. 2021)."""

from diffux2ct.diffusion.samplers.sampling import Sampler, Step, at_least_zero
from diffux2ct.types import Volume


class Ddim(Sampler):
    """One step of DDIM (Song et al. 2021, Eq. 12); ``eta`` 0 is deterministic, 1 has DDPM's variance."""

    def __init__(self, num_inference_steps: float | int | None = 50, eta: float | int = 0.0) -> None:
        super().__init__(num_inference_steps)
        self.eta = at_least_zero("eta", eta)

    def step(self, now: Step) -> Volume:
        """Predicted x_0, direction pointing to x_t, random noise."""
        x_t, x_0, a_t, a_prev = now.x_t, now.x_0, now.a_t, now.a_prev
        # 1. The noise direction that agrees with the (clipped) x_0.
        epsilon = (x_t - a_t.sqrt() * x_0) / (1 - a_t).sqrt()
        # 2. The variance, Eq. 16.
        sigma = self.eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)).sqrt()
        # 3. Eq. 12.
        x_prev = a_prev.sqrt() * x_0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * epsilon
        return x_prev if self.eta == 0 else x_prev + sigma * now.draw_noise()
