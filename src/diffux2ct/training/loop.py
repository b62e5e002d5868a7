"""The training loop: one function for any reconstructor."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from diffux2ct.errors import Stopped
from diffux2ct.reconstructors.base import Trainable
from diffux2ct.training import checkpoint, distributed
from diffux2ct.training.loggers import Loggers
from diffux2ct.training.settings import TrainerSettings, resolve_device
from diffux2ct.training.state import OptimizerFactory, RunState, StopSignal, prepare_model
from diffux2ct.training.steps import check_finite, endless_batches, step_objectives, step_seed
from diffux2ct.training.validation import Validator


def train(
    make_reconstructor: Callable[[], Trainable],
    train_set: Dataset,
    validator: Validator | None,
    make_optimizer: OptimizerFactory,
    make_loggers: Callable[[int], Loggers],
    settings: TrainerSettings,
    run_dir: Path,
    config: dict[str, Any],
) -> Path:
    """Train until ``max_steps`` or ``max_minutes``; returns the last checkpoint's path.

    All randomness is f(seed, step, sample): a resumed run equals an undisturbed one bit for bit on one device,
    and neither data order nor noise depends on the number of processes. Raises UserError for a changed config,
    an uneven batch and a loss that is no longer finite; Stopped, with the checkpoint written, after SIGINT or SIGTERM.
    """
    # 1. Validate, and find our place among the processes.
    rank, world = distributed.start()
    settings.check_world(world)
    device = resolve_device(settings.device, int(os.environ.get("LOCAL_RANK", 0)))
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    resumed = checkpoint.find_resume(run_dir, settings.resume, config)

    # 2. Build: every rank draws the same initial weights.
    torch.manual_seed(settings.seed)
    model = prepare_model(make_reconstructor(), device, settings.channels_last).train()
    objectives = model.objectives()
    state = RunState.create(model, objectives, make_optimizer, settings.ema_decay, config)
    wrapped = distributed.wrap(model, device, len(objectives))
    run_step = torch.compile(wrapped) if settings.compile else wrapped

    # 3. Resume.
    if resumed:
        state.restore(resumed)
    if rank == 0:
        checkpoint.forget_later(run_dir / "checkpoints", state.step)
    batches = endless_batches(train_set, settings, state.step, rank, world, device)
    losses: dict[str, Tensor] = {}
    with StopSignal() as stop, closing(make_loggers(state.step) if rank == 0 else Loggers([])) as loggers:
        progress = Progress(settings, state, stop, device, show=rank == 0)
        while not progress.finished():
            # 4. Step each objective in order, on the same batch.
            parts = [next(batches) for _ in range(settings.accumulate)]
            # After the batches: a loader that starts draws from the global generator too, and a resumed run starts one.
            torch.manual_seed(step_seed(settings.seed, state.step, rank))
            losses = step_objectives(objectives, state, run_step, wrapped, parts, settings, device)
            if state.ema:
                state.ema.update(model)
            state.step += 1
            progress.advance()

            # 5. Log.
            if settings.is_due(settings.log_every, state.step) or state.step == settings.max_steps:
                loggers.scalars(state.step, progress.report(distributed.average(losses)))

            # 6. Validate by sampling, with a preview; then checkpoint.
            if validator and rank == 0 and settings.is_due(settings.val_every, state.step):
                validator(model, state.ema, device, settings, loggers, state.step)
            if rank == 0 and settings.is_due(settings.checkpoint_every, state.step):
                check_finite(losses, state.step)
                state.save(run_dir, settings.keep_last)

        # 7. End on a checkpoint, and say where the run stands.
        progress.bar.close()
        if rank == 0:
            check_finite(losses, state.step)
            state.save(run_dir, settings.keep_last)
            if (
                validator
                and not progress.stop.received
                and not settings.is_due(settings.val_every, state.step)
            ):
                validator(model, state.ema, device, settings, loggers, state.step)
        stopped_by = distributed.agree(stop.received, device)
    distributed.barrier()
    distributed.stop()
    if stopped_by:
        place = f"stopped at step {state.step} of {settings.max_steps}; the same command goes on from there"
        raise Stopped(place if rank == 0 else "", stopped_by)
    return run_dir / "checkpoints" / "last.pt"


class Progress:
    """Time and speed of a run: when it is over, what the bar shows, samples per second."""

    def __init__(
        self, settings: TrainerSettings, state: RunState, stop: StopSignal, device: torch.device, show: bool
    ) -> None:
        self.settings, self.state, self.stop, self.device = settings, state, stop, device
        self.began = self.last_time = time.monotonic()
        self.elapsed_before, self.last_step = state.elapsed, state.step
        total = settings.max_steps
        self.bar = tqdm(total=total, initial=state.step, unit="step", disable=not show, dynamic_ncols=True)

    def finished(self) -> bool:
        """Whether the budget is used up or a signal asks to stop; the same answer on all ranks."""
        self.state.elapsed = self.elapsed_before + time.monotonic() - self.began
        minutes = self.settings.max_minutes
        over = self.stop.received > 0 or (minutes is not None and self.state.elapsed > minutes * 60)
        return self.state.step >= self.settings.max_steps or distributed.agree(over, self.device) > 0

    def advance(self) -> None:
        """One step done."""
        self.bar.update()

    def report(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Losses as numbers, with samples per second since the last report; also shown on the bar.

        Raises UserError when a loss is not finite.
        """
        values = check_finite(losses, self.state.step)
        now, steps = time.monotonic(), self.state.step - self.last_step
        values["samples_per_second"] = steps * self.settings.batch_size / (now - self.last_time)
        self.last_step, self.last_time = self.state.step, now
        total = next(value for name, value in values.items() if name.endswith("/total"))
        self.bar.set_postfix(loss=f"{total:.4f}", samples_s=f"{values['samples_per_second']:.1f}")
        return values
