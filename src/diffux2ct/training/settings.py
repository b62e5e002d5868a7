"""Training settings, validated before anything is built."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from diffux2ct.arguments import Count, Device, Positive, Precision, Range, Seed, Whole, check
from diffux2ct.errors import UserError

if TYPE_CHECKING:  # --help needs the settings, and loads no torch
    import torch


@dataclass(frozen=True)
class TrainerSettings:
    """Plain settings of a run. ``batch_size`` is the global batch, over all ranks and accumulated parts.

    A run ends with the first of ``max_steps``, ``max_epochs`` and ``max_minutes`` (of all its resumed parts);
    cadences are in steps, 0 turns one off.
    ``lr_schedule``: ``constant`` (the paper), ``cosine`` to zero at ``max_steps``, or ``linear_decay``: constant for
    the first half of ``max_steps``, then linear to zero (X2CT-GAN's code).
    ``strategy``: ``ddp``, each process holds the whole model, or ``fsdp``, weights, averages and optimisers are
    sharded. ``fused``: the optimiser's fused kernels; None takes them on a GPU. ``deterministic``: bitwise equal runs
    on one device, at a cost in speed.
    ``explosion_ratio``: a loss above so many times the largest of the first steps counts as exploded; None never.
    ``on_divergence``: ``stop``, or ``step_back`` to the last checkpoint and go on with other batches and noise, at most
    ``max_step_backs`` times in a run.
    ``profile``: trace so many steps, 0 none. ``checkpoint_stages``: the denoiser's, see there.
    """

    max_steps: Count
    batch_size: Count = 2
    accumulate: Count = 1
    max_epochs: Positive | None = None
    max_minutes: Positive | None = None
    precision: Precision = "bf16"
    channels_last: bool = True
    device: Device = "auto"
    num_threads: Count | None = None
    num_workers: Whole = 0
    seed: Seed = 0
    warmup_steps: Whole = 0
    lr_schedule: Literal["constant", "cosine", "linear_decay"] = "constant"
    grad_clip: Positive | None = 1.0
    ema_decay: Annotated[float, Range(0, 1, open=True)] | None = 0.9999
    compile: bool = False
    fused: bool | None = None
    deterministic: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_stages: list[int] | None = None
    on_divergence: Literal["stop", "step_back"] = "stop"
    max_step_backs: Whole = 3
    explosion_ratio: Positive | None = 100.0
    profile: Whole = 0
    log_every: Whole = 50
    val_every: Whole = 5000
    num_val_cases: Whole = 2
    checkpoint_every: Whole = 5000
    keep_last: Whole = 2
    resume: str = "auto"

    def __post_init__(self) -> None:
        check(self, "trainer.")

    def with_steps_for(self, num_train_cases: int) -> "TrainerSettings":
        """These settings whose one limit is the first of ``max_steps`` and ``max_epochs`` over so many cases."""
        if self.max_epochs is None:
            return self
        steps = max(1, round(self.max_epochs * num_train_cases / self.batch_size))
        return replace(self, max_epochs=None) if self.max_steps < steps else replace(self, max_steps=steps)

    def check_world(self, world: int) -> None:
        """Raise UserError unless the global batch divides evenly over ranks and accumulated parts."""
        if self.batch_size % (world * self.accumulate):
            raise UserError(
                f"trainer.batch_size={self.batch_size}: must be a multiple of {world} processes x "
                f"trainer.accumulate={self.accumulate}"
            )

    @staticmethod
    def is_due(every: int, step: int) -> bool:
        """True where an action with cadence ``every`` (0: never) is due after ``step`` steps."""
        return every > 0 and step % every == 0

    def span(self, during: tuple[float, float]) -> tuple[int, int]:
        """First and last + 1 step of a part of the run that is given as shares of ``max_steps``."""
        return round(during[0] * self.max_steps), round(during[1] * self.max_steps)

    def lr_factor(self, step: int, max_steps: int | None = None) -> float:
        """The factor of the learning rate at ``step`` (0-based) of ``max_steps`` (None: those of the run)."""
        max_steps = max_steps or self.max_steps
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.lr_schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
        elif self.lr_schedule == "linear_decay":
            factor *= min(1.0, max(0.0, 2 * (1 - step / max_steps)))
        return factor


def resolve_device(name: str, local_rank: int = 0) -> "torch.device":
    """``auto`` is this rank's GPU if there is one, else the CPU; UserError for a GPU that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(f"device={name}: no such GPU on this machine; use device=cpu or auto")
    return device
