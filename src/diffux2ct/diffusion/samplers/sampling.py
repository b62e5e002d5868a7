"""Reverse processes: from noise to a volume, one timestep after another (paper Eq. 2).

A sampler is a class with `step` whose settings are its constructor's arguments and its attributes. A file here and a
YAML under ``configs/sampler/`` that names the class by ``_target_`` add one.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.errors import UserError
from diffux2ct.types import Volume

_PATIENCE = 5.0  # seconds until the steps get a progress bar


class Sampler(ABC):
    """One reverse step, and the settings of the reverse process as attributes.

    num_inference_steps: timesteps visited, evenly spaced; None: all timesteps of the training.
    """

    def __init__(self, num_inference_steps: float | int | None = None) -> None:
        steps = num_inference_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise UserError(f"sampler.num_inference_steps={steps}: must be a whole number of at least 1")
        self.num_inference_steps = steps

    @abstractmethod
    def step(self, x_0: Volume, x_t: Volume, a_t: Tensor, a_prev: Tensor, draw_noise: Callable[[], Tensor]) -> Volume:
        """x at the next timestep visited, from the present ``x_t`` and the estimate ``x_0``, clipped to [-1, 1].

        ``a_t``, ``a_prev``: alphas_cumprod now and at the next timestep, 1 in the end; they may be several timesteps
        apart. ``draw_noise()``: fresh Gaussian noise of x_t's shape, zeros in the last step.
        """


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


@torch.no_grad()
def sample(
    network: Callable[[Tensor, Tensor], Tensor],
    process: DiffusionProcess,
    sampler: Sampler,
    x_t: Volume,
    draw_noise: Callable[[], Tensor],
) -> Volume:
    """Run the reverse process from ``x_t`` (pure noise) to a volume clipped to [-1, 1].

    ``network(x_t, t)`` is the denoiser with its conditions already bound (computed once per volume).
    ``draw_noise()`` gives fresh Gaussian noise of x_t's shape.
    """
    timesteps = inference_timesteps(
        process.num_train_timesteps, sampler.num_inference_steps or process.num_train_timesteps
    )
    pairs = list(zip(timesteps, [*timesteps[1:], None], strict=True))
    # On a terminal alone, and only where it takes a while.
    for t, t_prev in tqdm(pairs, desc="sampling", unit="step", leave=False, disable=None, delay=_PATIENCE):
        batch_t = torch.full((x_t.shape[0],), t, device=x_t.device, dtype=torch.long)
        a_t = process.alphas_cumprod[t]
        x_0 = process.predict_x0(network(x_t, batch_t).float(), x_t, batch_t).clamp(-1, 1)
        if t_prev is None:
            x_t = sampler.step(x_0, x_t, a_t, torch.ones_like(a_t), lambda like=x_t: torch.zeros_like(like))
        else:
            x_t = sampler.step(x_0, x_t, a_t, process.alphas_cumprod[t_prev], draw_noise)
    return x_t.clamp(-1, 1)


def at_least_zero(name: str, value: float | int) -> float:
    """A sampler's setting as a float; UserError unless it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"sampler.{name}={value}: must be a number of at least 0")
    return float(value)


def changed_settings(sampler: Sampler) -> dict[str, Any]:
    """Settings that are not the sampler's default, by name; the number of steps left out."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(type(sampler)).parameters.items()}
    given = {key: value for key, value in vars(sampler).items() if key != "num_inference_steps"}
    return {key: value for key, value in given.items() if value != defaults.get(key)}


def sampling_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``reconstruct`` for a JSON file: a sampler is its name in lower case and its settings."""
    record: dict[str, Any] = {}
    for key, value in settings.items():
        record |= {"name": type(value).__name__.lower(), **vars(value)} if isinstance(value, Sampler) else {key: value}
    return record
