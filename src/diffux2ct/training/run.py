"""A run: its place among the processes, its model and state, and the operations of the loop on them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from diffux2ct.errors import UserError
from diffux2ct.reconstructors.base import Objective, Trainable
from diffux2ct.reconstructors.cost import step_flops
from diffux2ct.reconstructors.precision import effective
from diffux2ct.seeding import derived_seed, seed_all
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.checkpoints.resume import Resume, case_digest
from diffux2ct.training.divergence import Diverged, LossWatch, write_bad_batch
from diffux2ct.training.loggers import Loggers
from diffux2ct.training.processes import distributed
from diffux2ct.training.processes.distributed import is_sharded, shard
from diffux2ct.training.processes.signals import Interrupted, StopSignal
from diffux2ct.training.settings import TrainerSettings, resolve_device
from diffux2ct.training.state import Ema, OptimizerFactory, RunState, prepare_model
from diffux2ct.training.steps import endless_batches, step_objectives
from diffux2ct.training.validation import Validator

BEST_METRIC = "val/psnr3d"
_STEP = 1  # salt of what a step draws globally: dropout


@dataclass
class Run:
    """All that ``start`` builds and a step needs; the same on every rank but for ``rank`` and its share of the data.

    ``draws``: the settings with the seed of batches and noise, which a step back changes.
    """

    settings: TrainerSettings
    draws: TrainerSettings
    run_dir: Path
    rank: int
    world: int
    device: torch.device
    state: RunState
    objectives: tuple[Objective, ...]
    wrapped: nn.Module
    run_step: Callable[[str, Any], dict[str, Tensor]]
    train_set: Dataset
    batches: Iterator[dict[str, Tensor]]
    make_model: Callable[[], Trainable]
    stop: StopSignal

    def opening(self) -> str:
        """One line that describes the run: size, data, precision, processes and step."""
        settings, step = self.settings, self.state.step
        cases = len(self.train_set)  # type: ignore[arg-type]
        parameters = sum(p.numel() for p in self.state.model.parameters()) / 1e6
        machines = f"{self.world} processes, {settings.strategy}" if self.world > 1 else "one process"
        what = (
            f"{self.run_dir}: {parameters:.2f} M parameters, {cases} cases, batch {settings.batch_size}, "
            f"{self.recipe()}, {effective(settings.precision, self.device)} on {self.device} ({machines})"
        )
        if step >= settings.max_steps:
            return f"{what}; at step {step} of {settings.max_steps} already: raise trainer.max_steps to continue"
        return f"{what}; {'continuing' if step else 'starting'} from step {step} of {settings.max_steps}"

    def recipe(self) -> str:
        """Optimiser, rate and schedule: "Muon at lr 0.002 (cosine)"."""
        optimizer = next(iter(self.state.optimizers.values()))
        return f"{type(optimizer).__name__} at lr {optimizer.defaults['lr']:g} ({self.settings.lr_schedule})"

    def next_parts(self) -> list[dict[str, Tensor]]:
        """This rank's share of the next global batch, in ``accumulate`` parts."""
        return [next(self.batches) for _ in range(self.settings.accumulate)]

    def step(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Step each objective in order on the same batch; returns losses and gradient norms by name."""
        state = self.state
        if state.step and state.step in {edge for o in self.objectives for edge in self.settings.span(o.during)}:
            self._change_objectives()
        # After the batches: a loader that starts draws from the global generator too, and a resumed run starts one.
        seed_all(self.draws.seed, state.step, self.rank, _STEP)
        losses = step_objectives(self.objectives, state, self.run_step, self.wrapped, parts, self.settings, self.device)
        if state.ema:
            state.ema.update(state.model)
        state.watch.observe(state.step, losses)
        state.step += 1
        return losses

    def _change_objectives(self) -> None:
        """Settle the parameters of an objective that is stepped no more: what follows builds on their average."""
        self.check()
        self.state.watch.restart()
        for objective in self.objectives:
            if self.state.ema and self.state.step == self.settings.span(objective.during)[1]:
                self.state.ema.settle(self.state.model, objective.parameters)
        self.state.best_score = None  # what scores well now may lack what follows

    def check(self) -> None:
        """Raise Diverged, with ``bad_batch.json`` written, where a loss was not finite or exploded. Collective.

        Not after a signal: the run ends then, and ``save`` leaves the last checkpoint as it is.
        """
        step = self.state.watch.first_bad_step()
        if step is None or distributed.agree(self.stop.received):
            return
        reason, values = self.state.watch.describe()
        message = f"step {step + 1}: {reason}"
        if self.rank == 0:
            indices = distributed.StepSampler(len(self.train_set), self.draws, step).batch(step)  # type: ignore[arg-type]
            note = write_bad_batch(self.run_dir, self.train_set, indices, step, reason, values)
            message += f"; its cases are in {note}"
        saved = (self.run_dir / "checkpoints" / "last.pt").is_file()
        message += "; the last checkpoint is intact" if saved else "; no checkpoint was due yet"
        tries = self.state.step_backs
        if self.settings.on_divergence == "step_back":
            ways = "or set trainer.precision=fp32" + (f" ({tries} steps back did not help)" if tries else "")
        else:
            ways = "set trainer.precision=fp32 or trainer.on_divergence=step_back"
        raise Diverged(f"{message}: lower optim.lr, {ways}", tries)

    def validate(self, validator: Validator | None, loggers: Loggers) -> bool:
        """Sample, score and log; True if it was the best so far. Collective: rank 0 samples, all where sharded.

        A signal ends it without scores.
        """
        if validator is None:
            return False
        self.check()
        best = False
        if self.rank == 0 or is_sharded(self.state.model):
            state = self.state
            stoppable = self._stopping_together if is_sharded(state.model) else self.stop.interrupting
            try:
                scores = validator(state.model, state.ema, self.device, self.settings, loggers, state.step, stoppable)
            except Interrupted:
                scores = {}
            score = scores.get(BEST_METRIC)
            best = score is not None and (state.best_score is None or score > state.best_score)
            if best:
                state.best_score = score
        return distributed.agree(best) > 0

    @contextmanager
    def _stopping_together(self) -> Iterator[None]:
        """Raises Interrupted on all ranks before sharded work, which none may leave alone."""
        if distributed.agree(self.stop.received):
            raise Interrupted
        yield

    def save(self, best: bool = False) -> bool:
        """Write a checkpoint unless a loss was bad; True if it was written. Collective."""
        self.check()
        if self.state.watch.first_bad_step() is not None:
            return False
        self.state.save(self.run_dir, self.settings.keep_last, best, self.rank)
        return True

    def close(self) -> None:
        """Release the process group; no step can follow."""
        distributed.unwrap(self.wrapped)

    def sample_flops(self) -> float | None:
        """FLOP of a step on one sample; None for a model that cannot run on the meta device."""
        try:
            sample = default_collate([self.train_set[0]]) | {"seed": torch.zeros(1, dtype=torch.long)}
            return step_flops(self.make_model, sample)
        except (RuntimeError, NotImplementedError):
            return None


def start(
    make_model: Callable[[], Trainable],
    train_set: Dataset,
    make_optimizer: OptimizerFactory,
    settings: TrainerSettings,
    run_dir: Path,
    config: dict[str, Any],
    resume: Resume | None = None,
    step_backs: int = 0,
) -> Run:
    """Join the processes, build, and resume. UserError for settings that do not go together.

    ``resume``: its state is emptied once it is restored, to free the memory.

    ``step_backs``: the number of steps back from a divergence so far; batches and noise depend on it.
    """
    # Join the other processes and settle how this one computes.
    rank, world = distributed.start()
    settings.check_world(world)
    device = resolve_device(settings.device, distributed.local_device())
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    set_deterministic(settings.deterministic)

    # Build the model, with the same initial weights on every rank.
    torch.manual_seed(settings.seed)
    sharded = settings.strategy == "fsdp" and world > 1
    # FSDP takes contiguous weights only.
    model = prepare_model(make_model(), device, settings.channels_last, contiguous_weights=sharded).train()
    if sharded:
        shard(model, device, world, len(model.objectives()))

    # Build what a checkpoint holds beside it, and restore it all.
    objectives = model.objectives()
    optimizers = {objective.name: make_optimizer(list(objective.parameters)) for objective in objectives}
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    watch = LossWatch(settings.explosion_ratio, device)
    state = RunState(model, optimizers, ema, config, watch, cases=case_digest(train_set))
    if resume:
        state.restore(resume.state, resume.path)
        resume.state.clear()
    _settle(state, run_dir, resume and resume.path, max(state.step_backs, step_backs), settings.keep_last, rank)

    # Wrap it for several processes, and start the batches at the step that comes next.
    wrapped = distributed.wrap(model, device, len(objectives))
    run_step = torch.compile(wrapped) if settings.compile else wrapped
    seed = derived_seed(settings.seed, state.step_backs) if state.step_backs else settings.seed
    draws = replace(settings, seed=seed)
    batches = endless_batches(train_set, draws, state.step, rank, world, device)
    return Run(
        settings, draws, run_dir, rank, world, device, state, objectives, wrapped, run_step, train_set, batches,
        make_model, StopSignal(),
    )  # fmt: skip


def _settle(state: RunState, run_dir: Path, resumed: Path | None, step_backs: int, keep_last: int, rank: int) -> None:
    """Make ``state`` the last checkpoint of the run's folder, with none after it.

    Otherwise a run that stepped back, or began from another run's checkpoint, and was then killed would resume from
    a discarded state. Collective. UserError where the processes have read different checkpoints.
    """
    first, last = -distributed.agree(-state.step), distributed.agree(state.step)
    if first != last:
        raise UserError(
            f"{run_dir}: the processes found different checkpoints in it, of steps {first} and {last}; give a run_dir "
            "on a disk that all of them share"
        )
    folder = run_dir / "checkpoints"
    if not distributed.agree(rank == 0 and checkpoint.forget_later_best(folder, state.step)):
        state.best_score = None
    is_last = (
        not checkpoint.candidates(folder)
        if resumed is None
        else checkpoint.is_last(folder, resumed) and step_backs == state.step_backs
    )
    state.step_backs = step_backs
    if distributed.agree(rank == 0 and not is_last):
        state.save(run_dir, keep_last, rank=rank, forget_later=True)
    elif rank == 0:
        checkpoint.forget_later(folder, state.step)


def set_deterministic(on: bool) -> None:
    """Restrict PyTorch to operations that give the same bits each time, or allow all."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(on)
