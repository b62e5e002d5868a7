"""Training settings, validated before anything is built."""

import math
from dataclasses import dataclass, replace

import torch

from diffux2ct.errors import UserError

_CHOICES = {
    "precision": ("bf16", "fp32"),
    "lr_schedule": ("constant", "cosine", "linear_decay"),
    "strategy": ("ddp", "fsdp"),
    "on_divergence": ("stop", "step_back"),
}
_WHOLE_NUMBERS = (
    "log_every",
    "val_every",
    "checkpoint_every",
    "warmup_steps",
    "num_workers",
    "seed",
    "keep_last",
    "max_step_backs",
    "profile",
)


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

    max_steps: int
    batch_size: int = 2
    accumulate: int = 1
    max_epochs: float | int | None = None
    max_minutes: float | int | None = None
    precision: str = "bf16"
    channels_last: bool = True
    device: str = "auto"
    num_threads: int | None = None
    num_workers: int = 0
    seed: int = 0
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    grad_clip: float | int | None = 1.0
    ema_decay: float | int | None = 0.9999
    compile: bool = False
    fused: bool | None = None
    deterministic: bool = False
    strategy: str = "ddp"
    checkpoint_stages: list[int] | None = None
    on_divergence: str = "stop"
    max_step_backs: int = 3
    explosion_ratio: float | int | None = 100.0
    profile: int = 0
    log_every: int = 50
    val_every: int = 5000
    num_val_cases: int = 2
    checkpoint_every: int = 5000
    keep_last: int = 2
    resume: str = "auto"

    def __post_init__(self) -> None:
        for key in ("max_steps", "batch_size", "accumulate"):
            if not _is_whole(getattr(self, key)) or getattr(self, key) < 1:
                raise UserError(f"trainer.{key}={getattr(self, key)}: must be a whole number of at least 1")
        if self.num_threads is not None and (not _is_whole(self.num_threads) or self.num_threads < 1):
            raise UserError(
                f"trainer.num_threads={self.num_threads}: must be at least 1, or null for PyTorch's own"
            )
        for key in _WHOLE_NUMBERS:
            if not _is_whole(getattr(self, key)) or getattr(self, key) < 0:
                raise UserError(f"trainer.{key}={getattr(self, key)}: must be a whole number, 0 or more")
        for key in ("max_epochs", "max_minutes", "explosion_ratio", "grad_clip"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise UserError(f"trainer.{key}={getattr(self, key)}: must be above 0, or null for no limit")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(
                f"trainer.ema_decay={self.ema_decay}: must lie between 0 and 1, or null for no average"
            )
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                names = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise UserError(f"trainer.{key}={getattr(self, key)}: choose {names}")

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

    def lr_factor(self, step: int) -> float:
        """The factor of the learning rate at ``step`` (0-based)."""
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.lr_schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.max_steps)))
        elif self.lr_schedule == "linear_decay":
            factor *= min(1.0, max(0.0, 2 * (1 - step / self.max_steps)))
        return factor


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is this rank's GPU if there is one, else the CPU; UserError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise UserError(f"device={name}: no such GPU on this machine; use device=cpu or auto")
    return device
