"""The state of a run between steps, saved and restored as one: model, optimisers, average, step and time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffux2ct.models.layers.layout import channels_last_3d
from diffux2ct.reconstructors.base import Trainable
from diffux2ct.training.checkpoints import checks as contents
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.divergence import LossWatch
from diffux2ct.training.processes.distributed import local, part_of, whole


class Ema:
    """Averages a model's parameters; ``decay`` is reached gradually: min(decay, (1 + n) / (10 + n)) at update n.

    Without the warm-up a short run would still be averaging its random initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average toward the model's current weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = [local(p.detach()) for _, p in model.named_parameters()]
        averages = [local(self.average[name]) for name, _ in model.named_parameters()]
        torch._foreach_lerp_(averages, parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    @torch.no_grad()
    def settle(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the average of ``parameters`` into the model, for good."""
        settled = {id(p) for p in parameters}
        for name, parameter in model.named_parameters():
            if id(parameter) in settled:
                parameter.copy_(self.average[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the model for the length of a ``with`` block."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy_into(model, self.average)
        try:
            yield
        finally:
            _copy_into(model, own)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Averages by parameter name, plus the number of updates."""
        return {"num_updates": self.num_updates} | {f"average.{name}": value for name, value in self.average.items()}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of ``state_dict``."""
        self.num_updates = int(state["num_updates"])
        for name, value in self.average.items():
            value.copy_(part_of(state[f"average.{name}"], value))


@torch.no_grad()
def _copy_into(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])


OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class RunState:
    """The contents of a checkpoint. ``elapsed`` is training time in seconds, all resumed parts included.

    ``best_score``: the highest validation PSNR3D (dB) so far. ``step_backs``: the number of steps back from
    a divergence. ``cases``: digest of the training cases.
    """

    model: Trainable
    optimizers: dict[str, torch.optim.Optimizer]
    ema: Ema | None
    config: dict[str, Any]
    watch: LossWatch
    step: int = 0
    elapsed: float = 0.0
    best_score: float | None = None
    step_backs: int = 0
    cases: str | None = None

    def save(
        self, run_dir: Path, keep_last: int, best: bool = False, rank: int = 0, forget_later: bool = False
    ) -> Path:
        """Write ``step_<n>.pt`` and make ``last.pt``, and where it is the ``best`` also ``best.pt``, the same file.

        Each rank calls it, for a sharded state is gathered from all; rank 0 writes. Older numbered files are pruned;
        later ones, of a run that went back, with ``forget_later``.
        """
        folder = run_dir / "checkpoints"
        path = folder / f"step_{self.step:08d}.pt"
        writes = rank == 0
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state = {
            "config": self.config,
            "step": self.step,
            "elapsed": self.elapsed,
            "best_score": self.best_score,
            "step_backs": self.step_backs,
            "cases": self.cases,
            "watch": self.watch.state_dict(),
            "model": whole(self.model.state_dict(), keep=writes),
            "optimizers": whole(optimizers, keep=writes),
            "ema": whole(self.ema.state_dict(), keep=writes) if self.ema else None,
            # Every step reseeds from (seed, step), so this serves only code that draws between steps.
            "rng": torch.get_rng_state(),
        }
        if writes:
            checkpoint.save(path, state)
            # The best first: the state that last.pt goes on from counts on it.
            for name in ("best.pt", "last.pt") if best else ("last.pt",):
                checkpoint.link(path, name)
            if forget_later:
                checkpoint.forget_later(folder, self.step)
            checkpoint.prune(folder, keep_last)
        return path

    def restore(self, state: dict[str, Any], where: Path | str = "the checkpoint") -> None:
        """Restore a checkpoint's state; UserError, with nothing changed, where it does not fit this run's model.

        ``where``: its file, for messages.
        """
        own = self.model.state_dict()
        contents.check_types(where, state)
        contents.check_holds(where, state, "step", "elapsed", "optimizers", "ema", "rng")
        contents.check_fits(where, state["model"], own)
        if self.ema:
            contents.check_average(where, state["ema"], self.ema.average)
        for name, optimizer in self.optimizers.items():
            contents.check_optimizer(where, state["optimizers"].get(name), optimizer, name)
        contents.check_rng(where, state["rng"])
        contents.check_watch(where, state.get("watch"))
        self.model.load_state_dict({name: part_of(value, own[name]) for name, value in state["model"].items()})
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(own_part(state["optimizers"][name], optimizer))
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if state.get("watch"):
            self.watch.load_state_dict(state["watch"])
        torch.set_rng_state(state["rng"])
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])
        self.best_score, self.step_backs = state.get("best_score"), int(state.get("step_backs", 0))


def own_part(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole optimiser state cut to this rank's part of each parameter.

    Rates and kernels are this run's own: the rate follows from the step, and a run may go on with fused kernels.
    """
    parameters = contents.parameters_of(optimizer)
    cut = {
        index: {key: _copy_for(value, parameters[index]) for key, value in values.items()}
        for index, values in saved["state"].items()
    }
    return {"state": cut, "param_groups": optimizer.state_dict()["param_groups"]}


def _copy_for(value: Any, parameter: Tensor) -> Any:
    """A value of an optimiser's state as the optimiser keeps it: this rank's part, in the parameter's memory layout.

    Copied, since a file may hold tensors that share their memory, which a step in place would write twice. Fused
    kernels read moments in the order of the parameter's memory, and a sharded run saves them in another.
    """
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape or isinstance(parameter, DTensor):
        return part_of(value.clone(), parameter)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def prepare_model(
    model: Trainable, device: torch.device, channels_last: bool, contiguous_weights: bool = False
) -> Trainable:
    """Move to the device; with ``channels_last`` 3D convolutions take, and so give, channels_last_3d: the fast layout.

    ``contiguous_weights``: their weights stay as they are, as FSDP needs them; the layout follows from the input alone.
    """
    model = model.to(device)
    if channels_last:
        for module in model.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.register_forward_pre_hook(_take_channels_last)
                if not contiguous_weights:
                    weight = module.weight
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def _take_channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook, not the weights, sets the layout: a weight of one input channel is contiguous in both formats, and
    PyTorch takes it for the plain one, and with it all that follows from the stem's output."""
    return channels_last_3d(inputs[0]), *inputs[1:]
