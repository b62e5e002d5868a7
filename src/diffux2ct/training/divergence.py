"""Divergence: a loss that is no longer finite or explodes is found at its step and reported with the batch's cases."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffux2ct.errors import UserError
from diffux2ct.files.atomic import write_text
from diffux2ct.training.processes import distributed

_NEVER = 2**62
_FIRST_STEPS = 10


class Diverged(UserError):
    """A loss became NaN or infinite, or exploded. ``step_backs``: the number of earlier steps back."""

    def __init__(self, message: str, step_backs: int) -> None:
        super().__init__(message)
        self.step_backs = step_backs


class LossWatch:
    """Records the first step whose losses or gradients are not finite, or whose loss explodes.

    A loss explodes above ``ratio`` times the largest of the first ten steps (None: never). All is kept on the device
    and read only by ``first_bad_step``, so that watching each step does not wait for the GPU.
    """

    def __init__(self, ratio: float | int | None, device: torch.device) -> None:
        self.ratio = float(ratio or math.inf)
        self.device = device
        self.names: list[str] = []
        self.totals = torch.zeros(0, dtype=torch.bool)  # which of the names
        self.reference: Tensor | None = None  # [losses]
        self.num_seen = 0
        self.first_bad = torch.tensor(_NEVER, device=device)
        self.bad_values: Tensor | None = None

    def observe(self, step: int, losses: dict[str, Tensor]) -> None:
        """Check the losses of the step after ``step`` steps."""
        if self.reference is not None and len(self.reference) != len(losses):
            self.reference, self.num_seen = None, 0  # restored from a run of other losses
        if self.names != list(losses):
            self.names = list(losses)
            # Gradient norms and parts of a loss may well grow: only totals explode.
            is_total = [name.endswith("/total") for name in self.names]
            self.totals = torch.tensor(is_total, device=self.device)
        values = torch.stack([value.detach().float() for value in losses.values()])
        exploded = torch.zeros_like(values, dtype=torch.bool)
        if self.num_seen >= _FIRST_STEPS and self.reference is not None:
            exploded = values.abs() > self.ratio * self.reference
        else:
            known = values.abs() if self.reference is None else self.reference
            self.reference = torch.maximum(known, values.abs()).nan_to_num(posinf=0.0)
        self.num_seen += 1
        now = (~values.isfinite() | (exploded & self.totals)).any() & (self.first_bad == _NEVER)
        self.bad_values = values if self.bad_values is None else torch.where(now, values, self.bad_values)
        self.first_bad = torch.where(now, torch.full_like(self.first_bad, step), self.first_bad)

    def restart(self) -> None:
        """Forget what losses are compared with: those that follow are of other objectives."""
        self.names, self.reference, self.num_seen, self.bad_values = [], None, 0, None

    def first_bad_step(self) -> int | None:
        """The number of steps before the first bad one on any rank; None without one. Collective."""
        step = distributed.earliest(self.first_bad)
        return None if step == _NEVER else step

    def describe(self) -> tuple[str, dict[str, float]]:
        """The fault of this rank's first bad step, and all its losses."""
        if self.bad_values is None or int(self.first_bad) == _NEVER:
            return "a loss of another process is not finite", {}
        values = dict(zip(self.names, self.bad_values.tolist(), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            return f"{bad[0]} is not finite", values
        assert self.reference is not None, "nothing explodes before there is a reference"
        times = dict(zip(self.names, (self.bad_values.abs() / self.reference).tolist(), strict=True))
        name = max((name for name in values if name.endswith("/total")), key=lambda name: times[name])
        return f"{name} exploded to {values[name]:.3g}", values

    def state_dict(self) -> dict[str, Any]:
        """The reference that losses are compared with."""
        reference = None if self.reference is None else self.reference.cpu()
        return {"num_seen": self.num_seen, "reference": reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.num_seen = int(state["num_seen"])
        self.reference = None if state["reference"] is None else state["reference"].to(self.device)


def write_bad_batch(
    run_dir: Path, dataset: Dataset, indices: list[int], step: int, reason: str, values: dict[str, float]
) -> Path:
    """``bad_batch.json``: the step, its losses, and the ids of the cases in the global batch that diverged."""
    cases = getattr(dataset, "cases", None)
    path = run_dir / "bad_batch.json"
    record = {
        "step": step + 1,
        "reason": reason,
        "case_ids": [cases[i].case_id if cases else str(i) for i in indices],
        "indices": indices,
        "losses": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    return path
