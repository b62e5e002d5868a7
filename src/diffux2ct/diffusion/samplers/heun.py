"""Heun's method on the probability-flow ODE, two runs of the network a step (Karras et al. 2022, arXiv 2206.00364)."""

import torch

from diffux2ct.diffusion.samplers.sampling import Sampler, Step
from diffux2ct.types import Volume


class Heun(Sampler):
    """One step of the deterministic second-order sampler (Karras et al. 2022, Alg. 1), at our timesteps.

    The paper's variables are x / sqrt(alphas_cumprod) and sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod). The last
    step, and one from pure noise (sigma = inf), are Euler steps, which DDIM's are with eta 0.
    """

    def __init__(self, num_inference_steps: int | None = 10) -> None:
        super().__init__(num_inference_steps)

    def step(self, now: Step) -> Volume:
        """An Euler step, corrected by the slope at its end."""
        # 1. Euler: the noise direction that agrees with x_0.
        epsilon = (now.x_t - now.a_t.sqrt() * now.x_0) / (1 - now.a_t).sqrt()
        x_prev = now.a_prev.sqrt() * now.x_0 + (1 - now.a_prev).sqrt() * epsilon
        if now.look_ahead is None:
            return x_prev
        # 2. The mean of both slopes in place of the first. Both are (x - x_0) / sigma, so that x cancels.
        sigma_over_next = ((1 - now.a_t) / now.a_t * now.a_prev / (1 - now.a_prev)).sqrt()
        weight = torch.where(now.a_t > 0, 0.5 * now.a_prev.sqrt() * (1 - sigma_over_next), 0.0)
        return x_prev + weight * (now.x_0 - now.look_ahead(x_prev))

    def num_evaluations(self, num_steps: int) -> int:
        """Two a step, one in the last."""
        return 2 * num_steps - 1
