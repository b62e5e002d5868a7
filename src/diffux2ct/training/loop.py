"""The training loop: one function for any reconstructor."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from diffux2ct.errors import Stopped
from diffux2ct.reconstructors.base import Trainable
from diffux2ct.training.checkpoints.resume import Resume
from diffux2ct.training.divergence import Diverged
from diffux2ct.training.loggers import Loggers
from diffux2ct.training.processes import distributed
from diffux2ct.training.progress import Progress, profiled
from diffux2ct.training.run import Run, start
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.state import OptimizerFactory
from diffux2ct.training.validation import Validator


@dataclass
class Ended:
    """The end of a run. ``by``: the budget's key, ``max_steps`` or ``max_minutes``."""

    checkpoint: Path
    by: str
    step: int


def train(
    make_reconstructor: Callable[[], Trainable],
    train_set: Dataset,
    validator: Validator | None,
    make_optimizer: OptimizerFactory,
    make_loggers: Callable[[int], Loggers],
    settings: TrainerSettings,
    run_dir: Path,
    config: dict[str, Any],
    resume: Resume | None = None,
    step_backs: int = 0,
) -> Ended:
    """Train until ``max_steps`` or ``max_minutes``, from ``resume`` on if given.

    All randomness is f(seed, step, sample): a resumed run equals an undisturbed one bit for bit on one device,
    and neither data order nor noise depends on the number of processes. Raises UserError for an uneven batch and
    failures of files and processes; Diverged for a loss that is no longer finite or explodes; Stopped, with the
    checkpoint written, after a signal.
    """
    # 1. Validate, build and resume.
    run = start(make_reconstructor, train_set, make_optimizer, settings, run_dir, config, resume, step_backs)
    state, rank, began = run.state, run.rank, run.state.step
    if rank == 0:
        print(run.opening(), file=sys.stderr)
    with (
        closing(run),
        run.stop as stop,
        closing(make_loggers(state.step) if rank == 0 else Loggers([])) as loggers,
        closing(Progress(settings, state, stop, run.device, run.sample_flops, rank, run.world)) as progress,
        profiled(settings.profile, run_dir, rank) as trace_step,
    ):
        if settings.on_divergence == "step_back" and began == 0:
            run.save()  # a state to step back to
        while not progress.finished():
            # 2. Step each objective in order, on the same batch.
            losses = run.step(progress.wait_for(run.next_parts))
            progress.advance()
            trace_step()

            # 3. Log.
            if settings.is_due(settings.log_every, state.step) or state.step == settings.max_steps:
                run.check()
                loggers.scalars(state.step, progress.report(distributed.average(losses)))

            # 4. Validate by sampling, with a preview; then checkpoint.
            with progress.aside():
                best = settings.is_due(settings.val_every, state.step) and run.validate(validator, loggers)
                if best or settings.is_due(settings.checkpoint_every, state.step):
                    run.save(best)

        # 5. End on a checkpoint, validated.
        progress.close()
        saved = run.save()
        stopped_by = distributed.agree(stop.received)
        unscored = state.step > began and not settings.is_due(settings.val_every, state.step)
        if not stopped_by and unscored and run.validate(validator, loggers):
            run.save(best=True)
    distributed.barrier()
    distributed.stop()
    return _ended(run, saved, stopped_by)


def _ended(run: Run, saved: bool, stopped_by: int) -> Ended:
    """The end of a run whose processes have parted; Stopped after a signal."""
    step, most = run.state.step, run.settings.max_steps
    if stopped_by:
        run.stop.pass_on()
        where = "there" if saved else "the last checkpoint, for the loss is no longer good"
        place = f"stopped at step {step} of {most}; the same command goes on from {where}"
        raise Stopped(place if run.rank == 0 else "", stopped_by)
    return Ended(run.run_dir / "checkpoints" / "last.pt", "max_steps" if step >= most else "max_minutes", step)


def stepping_back(attempt: Callable[[int], Ended], settings: TrainerSettings) -> Ended:
    """Call ``attempt(step_backs)``, which calls ``train``, and call it again where it diverges.

    With ``on_divergence=step_back`` each attempt after the first resumes from this run's last checkpoint with other
    batches and noise, so that it does not meet the same step again; from the second step back on from the one before
    it, since weights may be bad before a loss shows it. Raises Diverged after ``max_step_backs`` of them, and at once
    with ``stop``.
    """
    step_backs = 0
    while True:
        try:
            return attempt(step_backs)
        except Diverged as diverged:
            if settings.on_divergence != "step_back" or diverged.step_backs >= settings.max_step_backs:
                raise
            step_backs = diverged.step_backs + 1
            reason = str(diverged).split(";")[0]
            place = "the last checkpoint" if step_backs == 1 else "the checkpoint before the last"
            count = f"{step_backs} of {settings.max_step_backs}"
            if distributed.start()[0] == 0:
                print(f"warning: {reason}; back to {place} ({count})", file=sys.stderr)
