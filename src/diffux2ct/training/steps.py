"""The parts of one training step: batches, seeds, gradients, rates."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from diffux2ct.errors import UserError
from diffux2ct.reconstructors.base import Objective, on_device
from diffux2ct.reconstructors.precision import autocast
from diffux2ct.seeding import derived_seed
from diffux2ct.training.processes import distributed
from diffux2ct.training.processes.failures import of_worker
from diffux2ct.training.processes.signals import leave_to_the_main_process
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.state import RunState


def sample_seeds(seed: int, step: int, first: int, count: int) -> Tensor:
    """One seed per sample [count] of the global batch, starting at its ``first`` sample."""
    return torch.tensor([derived_seed(seed, step, first + i) for i in range(count)])


def endless_batches(
    dataset: Dataset, settings: TrainerSettings, step: int, rank: int, world: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """This rank's micro-batches from ``step`` on, each with one ``seed`` per sample, on the device, augmented there.

    Raises UserError where a case cannot be read, also by a data worker.
    """
    sampler = distributed.StepSampler(len(dataset), settings, step, rank, world)  # type: ignore[arg-type]
    share = settings.batch_size // world
    part = share // settings.accumulate

    def seeds(count: int) -> Tensor:
        at, k = step + count // settings.accumulate, count % settings.accumulate
        return sample_seeds(settings.seed, at, rank * share + k * part, part)

    # A dataset that draws at random gets (index, seed): a worker that loads ahead then draws what the step will use.
    seeded = (list(zip(indices, seeds(n).tolist(), strict=True)) for n, indices in enumerate(sampler))
    loader = DataLoader(
        dataset,
        batch_sampler=seeded if getattr(dataset, "randomize", None) else sampler,  # type: ignore[arg-type]
        num_workers=settings.num_workers,
        worker_init_fn=leave_to_the_main_process,
        persistent_workers=settings.num_workers > 0,
        pin_memory=device.type == "cuda",
    )
    augment = getattr(dataset, "augment", None) or dict
    try:
        for count, batch in enumerate(loader):
            yield augment(on_device(batch, device) | {"seed": seeds(count)})
    except (UserError, ConnectionError, EOFError) as error:
        raise of_worker(error, settings.num_workers) from error


def step_objectives(
    objectives: Sequence[Objective],
    state: RunState,
    run_step: Callable[[str, Any], dict[str, Tensor]],
    wrapped: nn.Module,
    parts: list[dict[str, Tensor]],
    settings: TrainerSettings,
    device: torch.device,
) -> dict[str, Tensor]:
    """Step each objective whose turn it is, in order on the same batch; returns losses and gradient norms by name."""
    losses: dict[str, Tensor] = {}
    for objective in objectives:
        first, end = settings.span(objective.during)
        if not first <= state.step < end:
            continue
        # Set the rate of this step, and forget the gradients of the last.
        optimizer = state.optimizers[objective.name]
        set_lr(optimizer, settings.lr_factor(state.step - first, end - first))
        optimizer.zero_grad(set_to_none=True)
        # Backward through the parts, clip, and step.
        losses |= accumulate(run_step, wrapped, objective.name, parts, settings, device)
        losses[f"{objective.name}/grad_norm"] = clip(objective.parameters, settings.grad_clip)
        optimizer.step()
    return losses


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
            with autocast(settings.precision, device):
                losses = run_step(name, part)
            (losses["total"] / len(parts)).backward()
        for key, value in losses.items():
            sums[f"{name}/{key}"] = sums.get(f"{name}/{key}", 0) + value.detach() / len(parts)
    return sums


def clip(parameters: Any, max_norm: float | None) -> Tensor:
    """Clip the gradients' global norm in place; returns the norm before clipping."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm else float("inf"), foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its first one times ``factor``."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
