"""Collective operations, which are the identity for one process, and sharding."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from diffux2ct.seeding import CPU, seeded_generator
from diffux2ct.training.settings import TrainerSettings

_SHUFFLE = 2  # salt of the order of an epoch


def start() -> tuple[int, int]:
    """(rank, world size). Joins torchrun's process group; (0, 1) for one process."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        # Long, because the others wait while rank 0 makes phantoms or validates by sampling.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    return dist.get_rank(), dist.get_world_size()


def local_device() -> int:
    """The number of this process's GPU among those that it sees; Slurm may show each process its own alone."""
    return int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())


def stop() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def agree(value: int) -> int:
    """The largest value of any rank: all must leave the loop at the same step, and for the same reason."""
    if not dist.is_initialized():
        return int(value)
    largest = torch.tensor(int(value))  # on the CPU, so that a GPU's queue of work need not end first
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def earliest(value: Tensor) -> int:
    """The smallest value of any rank: the first step at which something happened anywhere."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return int(value)


def average(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over all ranks: the log shows the losses of the global batch."""
    if not dist.is_initialized() or not losses:
        return losses
    stacked = torch.stack([value.float() for value in losses.values()])
    dist.all_reduce(stacked)
    return dict(zip(losses, stacked / dist.get_world_size(), strict=True))


def wrap(model: nn.Module, device: torch.device, num_objectives: int) -> nn.Module:
    """DDP over the model when there are several ranks; a sharded model syncs by itself."""
    if not dist.is_initialized() or is_sharded(model):
        return model
    ids = [device.index] if device.type == "cuda" else None
    # They differ for kernels of one voxel, whose strides mean nothing; elsewhere a gradient is copied as it is summed.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # An adversarial step touches only its own half of the parameters.
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=num_objectives > 1)


def unwrap(wrapped: nn.Module) -> None:
    """Release DDP's hold on the process group; ``wrapped`` cannot be trained any more.

    Were DDP the last to hold the group, the group's threads would be joined while Python's lock is held, and one of
    them may be waiting for that lock to release a tensor: the process would never end (PyTorch 2.13, Gloo).
    """
    if isinstance(wrapped, DistributedDataParallel):
        del wrapped.logger, wrapped.reducer


@contextmanager
def sync_gradients(model: nn.Module, when: bool) -> Iterator[None]:
    """Skip the exchange of gradients on all but the last part of an accumulated batch."""
    if is_sharded(model):
        model.set_requires_gradient_sync(when)  # type: ignore[operator]
        yield
    elif when or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


class StepSampler(Sampler[list[int]]):
    """Endless micro-batches of indices, fixed by (seed, step) alone.

    The global batch of step s is positions [s B, (s + 1) B) of an endless chain of shuffled epochs, so a resumed
    run sees what the undisturbed one would have seen, and the data order does not depend on the number of ranks.
    Each step yields ``accumulate`` lists: this rank's share, in parts.
    """

    def __init__(self, length: int, settings: TrainerSettings, start_step: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.start_step, self.rank, self.world = length, start_step, rank, world
        self.batch_size, self.seed, self.accumulate = settings.batch_size, settings.seed, settings.accumulate
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            generator = seeded_generator(CPU, self.seed, epoch, _SHUFFLE)
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
        return int(self._order[offset])

    def batch(self, step: int) -> list[int]:
        """The indices of the global batch of ``step``."""
        return [self._index(step * self.batch_size + i) for i in range(self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world
        part = share // self.accumulate
        step = self.start_step
        while True:
            own = self.batch(step)[self.rank * share : (self.rank + 1) * share]
            for k in range(self.accumulate):
                yield own[k * part : (k + 1) * part]
            step += 1


# Sharding by FSDP2: each rank holds a part of weights, averages and optimisers; a checkpoint holds them whole.


def shard(model: nn.Module, device: torch.device, world: int, num_objectives: int) -> None:
    """Spread the model's parameters over all ranks, in place; they become DTensors.

    A model of one objective gathers its weights block by block (the elements of its module lists). One of several is
    gathered whole: its objectives reach into each other's networks outside of their forward.
    """
    # Our blocks' outputs are nowhere changed in place; the tests compare the gradients with one process's.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world,))
    if num_objectives == 1:
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
    # Gathered again in backward, so that between steps only the shards are there, for averages and checkpoints.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    if hasattr(model, "reconstruct"):
        register_fsdp_forward_method(model, "reconstruct")


def _blocks(model: nn.Module) -> list[nn.Module]:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    elements = [child for parent in lists for child in parent if not isinstance(child, nn.ModuleList)]
    return [block for block in elements if any(True for _ in block.parameters())]


def is_sharded(model: nn.Module) -> bool:
    """True after ``shard``."""
    return isinstance(model, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any, keep: bool = True) -> Any:
    """A state with its sharded tensors gathered to the CPU. Each rank must call it; with ``keep`` it gets the result.

    Other leaves pass through, so that without sharding it is the identity.
    """
    if isinstance(tree, DTensor):
        full = tree.full_tensor()
        return full.cpu() if keep else None
    if isinstance(tree, dict):
        return {key: whole(value, keep) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value, keep) for value in tree]
    return tree


def part_of(value: Any, like: Tensor) -> Any:
    """Of a whole tensor the part that this rank holds of ``like``; anything of another shape as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    # Each rank has read the same file: it cuts its part out by itself.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
