"""DPM-Solver++(2M): a second-order solver at one run of the network a step (Lu et al. 2022, arXiv 2211.01095)."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.diffusion.samplers.sampling import Sampler, Step
from diffux2ct.types import Volume


class DpmSolver(Sampler):
    """One step of DPM-Solver++(2M) (Lu et al. 2022, Alg. 2), deterministic.

    The estimate of x_0 is extrapolated in the half logarithm of the signal-to-noise ratio, lambda, through the
    estimate of the step before. The first step and the last, which ends at lambda = inf, are of first order.
    """

    def __init__(self, num_inference_steps: int | None = 20) -> None:
        super().__init__(num_inference_steps)

    def step(self, now: Step) -> Volume:
        """The exact step of the ODE for a constant x_0, here the extrapolated one."""
        x_0, a_t, a_prev = now.x_0, now.a_t, now.a_prev
        # 1. Extrapolate. After pure noise (lambda = -inf) the ratio of the steps in lambda is 0: first order again.
        if now.earlier is not None and now.look_ahead is not None:
            earlier_a, earlier_x_0 = now.earlier
            ratio = (_lambda(a_prev) - _lambda(a_t)) / (_lambda(a_t) - _lambda(earlier_a))
            x_0 = x_0 + 0.5 * ratio * (x_0 - earlier_x_0)
        # 2. Go to the next timestep: sigma_prev / sigma_t x_t - alpha_prev (exp(-h) - 1) x_0, h the step in lambda.
        shrink = ((1 - a_prev) / (1 - a_t)).sqrt()
        return shrink * now.x_t + (a_prev.sqrt() - shrink * a_t.sqrt()) * x_0


def _lambda(a: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """log(alpha / sigma) of alphas_cumprod."""
    return 0.5 * torch.log(a / (1 - a))
