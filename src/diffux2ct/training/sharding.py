"""FSDP2: weights, averages and optimisers spread over the ranks, and whole again in a checkpoint."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


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
    """Whether ``shard`` was called on it."""
    return isinstance(model, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any, keep: bool = True) -> Any:
    """A state with its sharded tensors gathered to the CPU. Each rank must call it; who ``keep``s has the result.

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
