"""Time, speed and cost of a run, for its end, the progress bar and the log; a profile on request."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from diffux2ct.reconstructors.cost import matmul_rate
from diffux2ct.reconstructors.precision import effective
from diffux2ct.training.processes import distributed
from diffux2ct.training.processes.signals import StopSignal
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.state import RunState

Item = TypeVar("Item")

# Counting takes about a second: a run of fewer steps does without.
_WORTH_COUNTING = 10


class Progress:
    """The budget of a run, its progress bar, and its speed and cost.

    ``sample_flops`` returns the FLOP of a step on one sample, None where they cannot be counted; it is called once, at
    the first report, in runs of ten steps and more.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        state: RunState,
        stop: StopSignal,
        device: torch.device,
        sample_flops: Callable[[], float | None],
        rank: int,
        world: int,
    ) -> None:
        self.settings, self.state, self.stop, self.device, self.world = settings, state, stop, device, world
        self.began = self.last_time = time.monotonic()
        self.elapsed_before, self.last_step, self.waited = state.elapsed, state.step, 0.0
        self.sample_flops, self._rate = sample_flops, 0.0
        self._flops = None if settings.max_steps - state.step >= _WORTH_COUNTING else 0.0
        total = settings.max_steps
        self.bar = tqdm(total=total, initial=state.step, unit="step", disable=rank != 0, dynamic_ncols=True)

    def finished(self) -> bool:
        """True when the budget is used up or a signal has come; the same on all ranks."""
        self.state.elapsed = self.elapsed_before + time.monotonic() - self.began
        minutes = self.settings.max_minutes
        over = self.stop.received > 0 or (minutes is not None and self.state.elapsed > minutes * 60)
        return self.state.step >= self.settings.max_steps or distributed.agree(over) > 0

    def wait_for(self, make: Callable[[], Item]) -> Item:
        """The result of ``make``, its time counted as waiting for data."""
        start = time.monotonic()
        item = make()
        self.waited += time.monotonic() - start
        return item

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block, such as validation or saving, whose time counts for no step."""
        start = time.monotonic()
        yield
        self.last_time += time.monotonic() - start

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        """Leave the bar as it is, on a line of its own."""
        self.bar.close()

    def report(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Losses as numbers, with speed and cost since the last report; also shown on the bar."""
        values = {name: float(value) for name, value in losses.items()}
        now, steps = time.monotonic(), self.state.step - self.last_step
        seconds = now - self.last_time
        values["samples_per_second"] = steps * self.settings.batch_size / seconds
        values["data_wait_share"] = self.waited / seconds
        values["peak_memory_gib"] = peak_memory(self.device) / 2**30
        values |= self._utilisation(values["samples_per_second"])
        total = next(value for name, value in values.items() if name.endswith("/total"))
        self.bar.set_postfix(loss=f"{total:.4f}", samples_s=f"{values['samples_per_second']:.1f}")
        # Counting FLOP and measuring the rate, above, are no part of the next report's time.
        self.last_step, self.last_time, self.waited = self.state.step, time.monotonic(), 0.0
        return values

    def _utilisation(self, samples_per_second: float) -> dict[str, float]:
        """Achieved TFLOP/s of all ranks, and their share of the rate measured on this one; empty where unknown."""
        if self._flops is None:
            self._flops = self.sample_flops() or 0.0
            dtype = torch.bfloat16 if effective(self.settings.precision, self.device) == "bf16" else torch.float32
            self._rate = matmul_rate(self.device, dtype) if self._flops else 0.0
        if not self._flops:
            return {}
        achieved = samples_per_second * self._flops
        return {"tflops": achieved / 1e12, "share_of_peak": achieved / (self._rate * self.world)}


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: of the GPU as allocated, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def profiled(num_steps: int, run_dir: Path, rank: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each step; ``num_steps`` of them, after two to warm up, are traced.

    The trace is ``<run>/profile/rank<rank>.json`` for chrome://tracing or Perfetto, written when it is whole.
    """
    if not num_steps:
        yield lambda: None
        return
    path = run_dir / "profile" / f"rank{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=num_steps, repeat=1),
        on_trace_ready=lambda profile: profile.export_chrome_trace(str(path)),
        profile_memory=True,
    ) as profile:
        yield profile.step
