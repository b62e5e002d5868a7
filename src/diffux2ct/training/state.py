"""What a run holds between steps, saved and restored as one: model, optimisers, average, step and time."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffux2ct.reconstructors.base import Objective, Trainable
from diffux2ct.training import checkpoint
from diffux2ct.training.ema import Ema

_ECHO_SECONDS = 2.0

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class RunState:
    """Everything that a checkpoint holds. ``elapsed`` is training time in seconds, all resumed parts included."""

    model: Trainable
    optimizers: dict[str, torch.optim.Optimizer]
    ema: Ema | None
    config: dict[str, Any]
    step: int = 0
    elapsed: float = 0.0

    @classmethod
    def create(
        cls,
        model: Trainable,
        objectives: Sequence[Objective],
        make_optimizer: OptimizerFactory,
        ema_decay: float | None,
        config: dict[str, Any],
    ) -> "RunState":
        """The state at step 0: one optimiser per objective, and the average unless ``ema_decay`` is None."""
        optimizers = {o.name: make_optimizer(list(o.parameters)) for o in objectives}
        return cls(model, optimizers, Ema(model, ema_decay) if ema_decay else None, config)

    def save(self, run_dir: Path, keep_last: int) -> Path:
        """Write ``step_<n>.pt`` and make ``last.pt`` the same file; older numbered ones are pruned."""
        folder = run_dir / "checkpoints"
        path = folder / f"step_{self.step:08d}.pt"
        state = {
            "config": self.config,
            "step": self.step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": self.ema.state_dict() if self.ema else None,
            # Every step reseeds from (seed, step), so this serves only code that draws between steps.
            "rng": torch.get_rng_state(),
        }
        checkpoint.save(path, state)
        link = folder / ".last.pt.partial"
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
            os.replace(link, folder / "last.pt")
        except OSError:  # no hard links on this file system
            checkpoint.save(folder / "last.pt", state)
        checkpoint.prune(folder, keep_last)
        return path

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])


def prepare_model(model: Trainable, device: torch.device, channels_last: bool) -> Trainable:
    """Move to the device; 3D weights to channels_last_3d, which is the fast layout of 3D convolutions."""
    model = model.to(device)
    if channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


class StopSignal:
    """Takes note of SIGINT and SIGTERM while it is open, so that a step is finished and saved before the end.

    ``received``: the first signal's number, 0 for none. A second one interrupts at once, but for those of the first
    seconds: a Ctrl-C reaches a process from the terminal and again from torchrun.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: leave signals as they are
                self._former[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _set(self, number: int, _: Any) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _ECHO_SECONDS:
            raise KeyboardInterrupt
