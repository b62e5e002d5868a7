"""Reverse processes: from noise to a volume, one timestep after another (paper Eq. 2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.errors import UserError
from diffux2ct.types import Volume

SAMPLERS = ("ddpm", "ddim")


def inference_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Timesteps from T-1 downward, evenly spaced and ending the spacing at T ("trailing", Lin et al. 2024).

    The first is always T-1: sampling must start where the volume is pure noise.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise UserError(
            f"sampler.num_inference_steps={num_inference_steps}: must lie between 1 and "
            f"diffusion.num_train_timesteps={num_train_timesteps}"
        )
    stride = num_train_timesteps / num_inference_steps
    return [round(num_train_timesteps - i * stride) - 1 for i in range(num_inference_steps)]


def ddpm_step(x_0: Volume, x_t: Volume, a_t: Tensor, a_prev: Tensor, noise: Volume | None) -> Volume:
    """Draw x_{t-1} from the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 6-7; variance beta-tilde).

    ``a_t``, ``a_prev``: alphas_cumprod now and at the next timestep visited, so that strides over several
    timesteps are right too. ``noise`` None gives the mean (last step).
    """
    beta = 1 - a_t / a_prev
    mean = (a_prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - a_prev) * x_t) / (1 - a_t)
    if noise is None:
        return mean
    return mean + ((1 - a_prev) / (1 - a_t) * beta).sqrt() * noise


def ddim_step(
    x_0: Volume, x_t: Volume, a_t: Tensor, a_prev: Tensor, noise: Volume | None, eta: float = 0.0
) -> Volume:
    """One step of DDIM (Song et al. 2021, Eq. 12); ``eta`` 0 is deterministic, 1 has DDPM's variance."""
    # 1. The noise direction that agrees with the (clipped) x_0.
    epsilon = (x_t - a_t.sqrt() * x_0) / (1 - a_t).sqrt()
    # 2. The variance, Eq. 16.
    sigma = eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)).sqrt()
    # 3. Eq. 12: predicted x_0, direction pointing to x_t, random noise.
    x_prev = a_prev.sqrt() * x_0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * epsilon
    return x_prev if noise is None else x_prev + sigma * noise


@torch.no_grad()
def sample(
    network: Callable[[Tensor, Tensor], Tensor],
    process: DiffusionProcess,
    x_t: Volume,
    *,
    name: str = "ddpm",
    num_inference_steps: int = 1000,
    eta: float = 0.0,
    draw_noise: Callable[[], Tensor],
) -> Volume:
    """Run the reverse process from ``x_t`` (pure noise) to a volume clipped to [-1, 1].

    ``network(x_t, t)`` is the denoiser with its conditions already bound (computed once per volume).
    ``draw_noise()`` gives fresh Gaussian noise of x_t's shape. Raises UserError for an unknown sampler.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler.name={name}: choose one of {', '.join(SAMPLERS)}")
    timesteps = inference_timesteps(process.num_train_timesteps, num_inference_steps)
    one = torch.ones((), device=x_t.device)
    for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True):
        batch_t = torch.full((x_t.shape[0],), t, device=x_t.device, dtype=torch.long)
        a_t = process.alphas_cumprod[t]
        a_prev = one if t_prev is None else process.alphas_cumprod[t_prev]
        output = network(x_t, batch_t).float()
        x_0 = process.predict_x0(output, x_t, batch_t).clamp(-1, 1)
        last = t_prev is None
        if name == "ddpm":
            x_t = ddpm_step(x_0, x_t, a_t, a_prev, None if last else draw_noise())
        else:
            x_t = ddim_step(x_0, x_t, a_t, a_prev, None if last or eta == 0 else draw_noise(), eta)
    return x_t.clamp(-1, 1)
