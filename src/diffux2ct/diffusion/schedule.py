"""Noise schedules: how much of the volume is left at each timestep (paper Eq. 1)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.errors import UserError


def linear_betas(num_train_timesteps: int, start: float, end: float) -> Float[Tensor, " t"]:
    """Betas growing linearly from ``start`` to ``end`` (Ho et al. 2020)."""
    return torch.linspace(start, end, num_train_timesteps, dtype=torch.float64)


def cosine_betas(num_train_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> Float[Tensor, " t"]:
    """Betas of the squared-cosine schedule (Nichol and Dhariwal 2021, Eq. 17)."""
    s = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = torch.cos((s + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)


def rescale_zero_terminal_snr(alphas_cumprod: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Shift and scale sqrt(alphas_cumprod) so that the last one is exactly 0 (Lin et al. 2024, Alg. 1).

    Sampling starts from pure noise; without this the network never saw pure noise in training.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def make_alphas_cumprod(
    num_train_timesteps: int,
    schedule: str = "linear",
    beta_start: float = 1e-4,
    beta_end: float = 2e-2,
    zero_terminal_snr: bool = False,
) -> Float[Tensor, " t"]:
    """The cumulative product of 1 - beta in float64, indexed by t = 0 .. T-1 (the paper's t = 1 .. T).

    UserError for settings that give no schedule. The paper leaves T and beta unstated: docs/method.md.
    """
    if num_train_timesteps < 1:
        raise UserError(f"diffusion.num_train_timesteps={num_train_timesteps}: must be at least 1")
    if schedule == "linear":
        if not 0 < beta_start <= beta_end < 1:
            raise UserError(
                f"diffusion.beta_start={beta_start}, beta_end={beta_end}: must rise and lie between 0 and 1"
            )
        betas = linear_betas(num_train_timesteps, beta_start, beta_end)
    elif schedule == "cosine":
        betas = cosine_betas(num_train_timesteps)
    else:
        raise UserError(f"diffusion.schedule={schedule}: choose linear or cosine")
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return rescale_zero_terminal_snr(alphas_cumprod) if zero_terminal_snr else alphas_cumprod
