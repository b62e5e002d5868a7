"""Noise schedules: how much of the volume is left at each timestep (paper Eq. 1)."""

import math
from collections.abc import Sequence
from typing import Any

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


def spaced_timesteps(num_timesteps: int, count: int) -> list[int]:
    """``count`` of the timesteps 0 .. num_timesteps-1, downward from the last, evenly spaced.

    The spacing ends at num_timesteps ("trailing", Lin et al. 2024), as sampling must start at the last, pure noise.
    """
    stride = num_timesteps / count
    return [round(num_timesteps - i * stride) - 1 for i in range(count)]


def trained_timesteps(num_train_timesteps: int, timesteps: Any = None) -> Sequence[int]:
    """The timesteps that are trained, rising; the last is T-1 (Fast-DDPM, Jiang et al. 2024).

    ``timesteps``: None, all; a number, so many evenly spaced ones; a sequence, these. UserError for any other.
    """
    if timesteps is None:
        return range(num_train_timesteps)
    if isinstance(timesteps, int) and not isinstance(timesteps, bool):
        if not 1 <= timesteps <= num_train_timesteps:
            between = f"1 and diffusion.num_train_timesteps={num_train_timesteps}"
            raise UserError(f"diffusion.timesteps={timesteps}: must lie between {between}")
        return spaced_timesteps(num_train_timesteps, timesteps)[::-1]
    chosen = list(timesteps) if isinstance(timesteps, Sequence) and not isinstance(timesteps, str) else []
    whole = all(isinstance(t, int) and not isinstance(t, bool) for t in chosen)
    last = num_train_timesteps - 1
    if not chosen or not whole or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] != last:
        raise UserError(
            f"diffusion.timesteps={timesteps}: give a whole number, rising timesteps that end at {last}, where "
            "sampling starts, or null for all"
        )
    return chosen


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
