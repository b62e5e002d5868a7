"""Reverse processes: from noise to a volume, one timestep after another (paper Eq. 2).

A sampler is a class with `step` whose settings are its constructor's arguments and its attributes. A file here and a
YAML under ``configs/sampler/`` that names the class by ``_target_`` add one. It keeps nothing between two steps: `Step`
holds whatever a step depends on.
"""

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffux2ct.diffusion.consistency import Consistency, Correction
from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.schedule import spaced_timesteps
from diffux2ct.errors import UserError
from diffux2ct.types import Volume

_PATIENCE = 5.0  # seconds until the steps get a progress bar


@dataclass(frozen=True)
class Step:
    """The inputs of one reverse step, from the present timestep to the next timestep visited.

    x_t: the present volume. x_0: the estimate at x_t, clipped to [-1, 1].
    a_t, a_prev: alphas_cumprod now and at the next timestep, 1 in the end; they may be several timesteps apart.
    draw_noise: fresh Gaussian noise of x_t's shape, zeros in the last step.
    look_ahead: the estimate of x_0, clipped too, at the next timestep from x there: one more run of the network.
        None in the last step, which ends at x_0.
    earlier: a_t and x_0 of the step before; None in the first step.
    """

    x_t: Volume
    x_0: Volume
    a_t: Tensor
    a_prev: Tensor
    draw_noise: Callable[[], Tensor]
    look_ahead: Callable[[Volume], Volume] | None = None
    earlier: tuple[Tensor, Volume] | None = None


class Sampler(ABC):
    """One reverse step, and the settings of the reverse process as attributes.

    num_inference_steps: timesteps visited, evenly spaced among those of the training; None: all of them.
    """

    def __init__(self, num_inference_steps: float | int | None = None) -> None:
        steps = num_inference_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise UserError(f"sampler.num_inference_steps={steps}: must be a whole number of at least 1")
        self.num_inference_steps = steps

    @abstractmethod
    def step(self, now: Step) -> Volume:
        """x at the next timestep visited."""

    def num_evaluations(self, num_steps: int) -> int:
        """Runs of the network in a reconstruction of ``num_steps`` steps: one a step without `Step.look_ahead`."""
        return num_steps


def inference_timesteps(trained: Sequence[int], num_inference_steps: int | None = None) -> list[int]:
    """The timesteps visited, downward from the last: so many of those trained, evenly spaced; None: all of them."""
    count = len(trained) if num_inference_steps is None else num_inference_steps
    if not 1 <= count <= len(trained):
        most = (
            f"diffusion.num_train_timesteps={len(trained)}"
            if isinstance(trained, range)
            else f"{len(trained)}, as diffusion.timesteps alone are trained; null visits each of them"
        )
        raise UserError(f"sampler.num_inference_steps={count}: must lie between 1 and {most}")
    return [trained[i] for i in spaced_timesteps(len(trained), count)]


@torch.no_grad()
def sample(
    network: Callable[[Tensor, Tensor], Tensor],
    process: DiffusionProcess,
    sampler: Sampler,
    x_t: Volume,
    draw_noise: Callable[[], Tensor],
    consistency: Correction | None = None,
) -> Volume:
    """Run the reverse process from ``x_t`` (pure noise) to a volume clipped to [-1, 1].

    ``network(x_t, t)`` is the denoiser with its conditions already bound (computed once per volume).
    ``draw_noise()`` gives fresh Gaussian noise of x_t's shape. ``consistency``: applied to each estimate of x_0.
    """
    timesteps = inference_timesteps(process.timesteps, sampler.num_inference_steps)
    pairs = list(zip(timesteps, [*timesteps[1:], None], strict=True))

    def predict_x0(x_t: Volume, t: int) -> Volume:
        batch_t = torch.full((x_t.shape[0],), t, device=x_t.device, dtype=torch.long)
        x_0 = process.predict_x0(network(x_t, batch_t).to(x_t.dtype), x_t, batch_t).clamp(-1, 1)
        return x_0 if consistency is None else consistency(x_0)

    earlier = None
    # On a terminal alone, and only where it takes a while.
    for t, t_prev in tqdm(pairs, desc="sampling", unit="step", leave=False, disable=None, delay=_PATIENCE):
        a_t, x_0 = process.alphas_cumprod[t], predict_x0(x_t, t)
        if t_prev is None:
            now = Step(x_t, x_0, a_t, torch.ones_like(a_t), partial(torch.zeros_like, x_t), None, earlier)
        else:
            look_ahead = partial(predict_x0, t=t_prev)
            now = Step(x_t, x_0, a_t, process.alphas_cumprod[t_prev], draw_noise, look_ahead, earlier)
        x_t, earlier = sampler.step(now), (a_t, x_0)
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


def sampling_words(record: Mapping[str, Any]) -> str:
    """One line on what a reconstruction is, from its `sampling_record`; empty for a method that draws nothing."""
    steps = record.get("num_inference_steps")
    words = {
        "mean": "posterior mean (output=sample gives a sample)",
        "sample": "posterior sample, one of many (output=mean gives their mean)",
        "ensemble": f"mean of {record.get('num_samples')} posterior samples",
    }.get(str(record.get("output")), f"sample by {record['name']}" if "name" in record else "")
    words += "" if record.get("blend") is None else f", blend {record['blend']:g} (0 is the mean)"
    words += f", {steps} step{'s' if steps > 1 else ''}" if words and steps else ""
    if record.get("consistency"):
        control = record.get("consistency_mismatch")
        words += f", consistency {record['consistency']}" + (f" (a control: {control})" if control is not None else "")
    return words


def sampling_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``reconstruct`` for a JSON file: a sampler is its name in lower case and its settings.

    ``num_evaluations``, the runs of the network, is given where it is not the number of steps.
    """
    record: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Consistency):
            record |= value.record()
            continue
        if not isinstance(value, Sampler):
            record[key] = value
            continue
        record |= {"name": re.sub(r"(?<!^)(?=[A-Z])", "_", type(value).__name__).lower(), **vars(value)}
        steps = value.num_inference_steps
        if steps is not None and (runs := value.num_evaluations(steps)) != steps:
            record["num_evaluations"] = runs
    return record
