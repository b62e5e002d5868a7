"""The training loop: one function for any reconstructor."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffux2ct.errors import UserError
from diffux2ct.reconstructors.base import Reconstructor
from diffux2ct.training import checkpoint, distributed
from diffux2ct.training.ema import Ema
from diffux2ct.training.loggers import Loggers
from diffux2ct.training.settings import TrainerSettings, resolve_device
from diffux2ct.training.validation import Validator

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def train(
    build_reconstructor: Callable[[], Reconstructor],
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
    and the data order and noise do not depend on the number of processes. Raises UserError for a changed config,
    an uneven batch and a loss that is no longer finite.
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
    model = prepare_model(build_reconstructor(), device, settings.channels_last)
    objectives = model.objectives()
    optimizers = {o.name: make_optimizer(list(o.parameters)) for o in objectives}
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    wrapped = distributed.wrap(model, device, len(objectives))
    run_step = torch.compile(wrapped) if settings.compile else wrapped

    # 3. Resume.
    step, elapsed = restore(resumed, model, optimizers, ema) if resumed else (0, 0.0)
    batches = endless_batches(train_set, settings, step, rank, world, device)
    loggers = make_loggers(step) if rank == 0 else Loggers([])
    started, stopping = time.monotonic() - elapsed, StopSignal()
    bar = tqdm(total=settings.max_steps, initial=step, unit="step", disable=rank != 0, dynamic_ncols=True)
    last_log = (step, time.monotonic())

    def finished() -> bool:
        over = settings.max_minutes is not None and time.monotonic() - started > settings.max_minutes * 60
        return step >= settings.max_steps or distributed.agree(over or stopping.received, device)

    def save_checkpoint() -> Path:
        return save(run_dir, step, time.monotonic() - started, model, optimizers, ema, config, settings.keep_last)

    while not finished():
        # 4. Step each objective in order on the same batch.
        torch.manual_seed(step_seed(settings.seed, step, rank))
        parts = [next(batches) for _ in range(settings.accumulate)]
        logs: dict[str, Tensor] = {}
        for objective in objectives:
            optimizer = optimizers[objective.name]
            set_lr(optimizer, settings.lr_factor(step))
            optimizer.zero_grad(set_to_none=True)
            logs |= accumulate(run_step, wrapped, objective.name, parts, settings, device)
            logs[f"{objective.name}/grad_norm"] = clip(objective.parameters, settings.grad_clip)
            optimizer.step()
        if ema:
            ema.update(model)
        step += 1
        bar.update()

        # 5. Log.
        if step % settings.log_every == 0 or step == settings.max_steps:
            values = {name: float(value) for name, value in logs.items()}
            check_finite(values, step)
            now = time.monotonic()
            values["samples_per_second"] = (step - last_log[0]) * settings.batch_size / (now - last_log[1])
            last_log = (step, now)
            loggers.scalars(step, values)
            total = next(v for k, v in values.items() if k.endswith("/total"))
            bar.set_postfix(loss=f"{total:.4f}", samples_s=f"{values['samples_per_second']:.1f}")

        # 6. Validate by sampling, with pictures.
        if validator and settings.val_every and step % settings.val_every == 0 and rank == 0:
            validator(model, ema, device, settings, loggers, step)

        # 7. Checkpoint.
        if settings.checkpoint_every and step % settings.checkpoint_every == 0 and rank == 0:
            save_checkpoint()

    bar.close()
    if rank == 0:
        save_checkpoint()
        if stopping.received:
            print(f"stopped at step {step}, checkpoint written; the same command goes on from there")
        elif validator and settings.val_every:
            validator(model, ema, device, settings, loggers, step)
    loggers.close()
    distributed.barrier()
    distributed.stop()
    return run_dir / "checkpoints" / "last.pt"


def prepare_model(model: Reconstructor, device: torch.device, channels_last: bool) -> Reconstructor:
    """Move to the device; 3D weights to channels_last_3d, which is the fast layout of 3D convolutions."""
    model = model.to(device)
    if channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step on one rank; feeds dropout and anything else that draws globally."""
    return (seed * 1_000_003 + step) * 4_099 + rank


def sample_seeds(seed: int, step: int, first: int, count: int) -> Tensor:
    """One seed per sample [count] of the global batch, starting at its ``first`` sample."""
    return torch.tensor([(seed * 1_000_003 + step) * 65_537 + first + i for i in range(count)])


def endless_batches(
    dataset: Dataset, settings: TrainerSettings, step: int, rank: int, world: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """This rank's micro-batches from ``step`` on, each with one ``seed`` per sample, on the device."""
    sampler = distributed.StepSampler(
        len(dataset),  # type: ignore[arg-type]
        settings.batch_size,
        settings.seed,
        step,
        rank,
        world,
        settings.accumulate,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        pin_memory=device.type == "cuda",
    )
    share = settings.batch_size // world
    part = share // settings.accumulate
    for count, batch in enumerate(loader):
        at, k = step + count // settings.accumulate, count % settings.accumulate
        batch["seed"] = sample_seeds(settings.seed, at, rank * share + k * part, part)
        yield {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def accumulate(
    run_step: Callable[[str, Any], dict[str, Tensor]],
    wrapped: nn.Module,
    name: str,
    parts: list[dict[str, Tensor]],
    settings: TrainerSettings,
    device: torch.device,
) -> dict[str, Tensor]:
    """Backward through each part of the batch; returns the mean losses, named ``<objective>/<loss>``."""
    sums: dict[str, Tensor] = {}
    for k, part in enumerate(parts):
        with distributed.sync_gradients(wrapped, when=k == len(parts) - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                losses = run_step(name, part)
            (losses["total"] / len(parts)).backward()
        for key, value in losses.items():
            sums[f"{name}/{key}"] = sums.get(f"{name}/{key}", 0) + value.detach() / len(parts)
    return sums


def clip(parameters: Any, max_norm: float | None) -> Tensor:
    """Clip the gradients' global norm in place; returns the norm before clipping."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm else float("inf"), foreach=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its first one times ``factor``."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


def check_finite(values: dict[str, float], step: int) -> None:
    """UserError when a loss is NaN or infinite."""
    bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise UserError(
            f"step {step}: {bad[0]} is not finite; the last checkpoint is intact: lower optim.lr, or set "
            "trainer.precision=fp32"
        )


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag, so that a step is finished and saved before the run ends."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                signal.signal(number, self._set)
            except ValueError:  # not the main thread: leave signals as they are
                return

    def _set(self, number: int, _: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


def save(
    run_dir: Path,
    step: int,
    elapsed: float,
    model: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    ema: Ema | None,
    config: dict[str, Any],
    keep_last: int,
) -> Path:
    """Write ``step_<n>.pt`` and make ``last.pt`` the same file; older numbered ones are pruned."""
    folder = run_dir / "checkpoints"
    path = folder / f"step_{step:08d}.pt"
    state = {
        "config": config,
        "step": step,
        "elapsed": elapsed,
        "model": model.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "ema": ema.state_dict() if ema else None,
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


def restore(
    state: dict[str, Any], model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], ema: Ema | None
) -> tuple[int, float]:
    """Load a checkpoint into everything that ``save`` took it from; returns (step, elapsed seconds)."""
    model.load_state_dict(state["model"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    if ema:
        ema.load_state_dict(state["ema"])
    torch.set_rng_state(state["rng"])
    return int(state["step"]), float(state["elapsed"])
