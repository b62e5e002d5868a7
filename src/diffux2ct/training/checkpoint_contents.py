"""What a checkpoint must hold to be taken: each check names the file and what is wrong with it.

A file of another program, or one changed on purpose, may hold anything of any type that PyTorch reads without running
code: all that is used of one is looked at here first.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffux2ct.errors import UserError

_TYPES: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "step": int,
    "elapsed": (int, float),
    "best_score": (int, float, type(None)),
    "step_backs": int,
    "cases": (str, type(None)),
    "watch": (dict, type(None)),
    "model": dict,
    "optimizers": dict,
    "ema": (dict, type(None)),
    "rng": Tensor,
}
_NOT_NEGATIVE = ("step", "elapsed", "step_backs")
_OURS = "use a checkpoint that train.py wrote"
_OF_MODEL = "use a checkpoint of this model"


def check_types(path: Path | str, state: Mapping[str, Any]) -> None:
    """UserError unless what is there has the types that ``RunState.save`` writes, with no negative count."""
    for key, types in _TYPES.items():
        if key not in state:
            continue
        value = state[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise UserError(f"{path}: its {key} is of type {type(value).__name__}; {_OURS}")
        if key in _NOT_NEGATIVE and not 0 <= value < math.inf:
            raise UserError(f"{path}: its {key} is {value}; {_OURS}")


def check_config(path: Path | str, config: Mapping[str, Any]) -> None:
    """UserError unless a checkpoint's config has the parts from which a model is built and used."""
    for key in ("model", "trainer", "dataset", "sampler"):
        if not isinstance(config.get(key), dict):
            raise UserError(f"{path}: its config has no {key}; {_OURS}")


def check_holds(path: Path | str, state: Mapping[str, Any], *keys: str) -> None:
    """UserError, naming the first that is not there, unless a checkpoint's state has all ``keys``."""
    for key in keys:
        if key not in state:
            raise UserError(f"{path}: it holds no {key}; {_OURS}")


def check_fits(path: Path | str, saved: Any, expected: Mapping[str, Tensor], what: str = "weights") -> None:
    """UserError, naming the first difference, unless ``saved`` has the names, shapes and dtypes of ``expected``."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path}: its {what} do not fit the model ({problem}); {_OF_MODEL}")

    if not isinstance(saved, Mapping):
        raise refuse(f"no {what} in it")
    for name, tensor in expected.items():
        value = saved.get(name)
        if not isinstance(value, Tensor):
            raise refuse(f"no {name}")
        if value.shape != tensor.shape or value.dtype != tensor.dtype or value.layout != torch.strided:
            raise refuse(f"{name} is {_kind(value)}, where the model has {_kind(tensor)}")
    unknown = [name for name in saved if name not in expected]
    if unknown:
        raise refuse(f"the model has no {unknown[0]}")


def _kind(tensor: Tensor) -> str:
    sparse = "" if tensor.layout == torch.strided else "sparse "
    return f"{sparse}{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_average(path: Path | str, saved: Any, expected: Mapping[str, Tensor]) -> None:
    """UserError unless ``saved`` is an `Ema`'s state with the tensors ``expected``."""
    saved = saved or {}
    check_fits(path, {k: v for k, v in saved.items() if k != "num_updates"}, expected, "averaged weights")
    if not isinstance(saved.get("num_updates"), int):
        raise UserError(f"{path}: its averaged weights have no num_updates; {_OURS}")


def check_optimizer(path: Path | str, saved: Any, optimizer: torch.optim.Optimizer, name: str) -> None:
    """UserError unless ``saved`` is the state of an optimiser of this kind, over parameters of these shapes."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path}: its optimiser {name} {problem}; {_OF_MODEL}")

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    listed = [group.get("params") if isinstance(group, dict) else None for group in groups or []]
    count = sum(len(numbers) if isinstance(numbers, list) else 0 for numbers in listed)
    if count != len(parameters):
        raise refuse(f"steps {count} parameters, this model's {len(parameters)}")
    if not isinstance(saved.get("state"), dict):
        raise refuse("has no state")
    expected = _state_of_one(optimizer)
    for index, values in saved["state"].items():
        if not isinstance(index, int) or not 0 <= index < count or not isinstance(values, dict):
            raise refuse(f"has a state for {index!r}, of {count} parameters")
        if values.keys() != expected.keys():
            raise refuse(f"holds {_names(values)} for a parameter, where this run's holds {_names(expected)}")
        for key, value in values.items():
            _check_entry(refuse, key, value, expected[key], parameters[index])


def _state_of_one(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser of this kind keeps for a parameter, here one of shape [1, 2], after a step."""
    defaults = {key: value for key, value in optimizer.defaults.items() if key not in ("fused", "foreach")}
    probe = nn.Parameter(torch.zeros(1, 2))
    probe.grad = torch.zeros(1, 2)
    one = type(optimizer)([probe], **defaults)
    one.step()
    return dict(one.state[probe])


def _check_entry(
    refuse: Callable[[str], UserError], key: str, value: Any, example: Any, parameter: Tensor
) -> None:
    if not isinstance(example, Tensor):
        if type(value) is not type(example):
            raise refuse(f"has {key} of type {type(value).__name__}")
        return
    shape = parameter.shape if example.dim() else torch.Size()
    dtype = parameter.dtype if example.dim() else example.dtype
    if not isinstance(value, Tensor) or (value.shape, value.dtype, value.layout) != (
        shape,
        dtype,
        torch.strided,
    ):
        kind = _kind(value) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
        raise refuse(
            f"has {key} {kind}, where this run's is {str(dtype).removeprefix('torch.')} {list(shape)}"
        )


def _names(values: Mapping[Any, Any]) -> str:
    return ", ".join(str(key) for key in list(values)[:6]) or "nothing"


def check_rng(path: Path | str, saved: Tensor) -> None:
    """UserError unless ``saved`` is a state of PyTorch's generator."""
    own = torch.get_rng_state()
    if saved.shape != own.shape or saved.dtype != own.dtype:
        raise UserError(f"{path}: its rng is {_kind(saved)}, where PyTorch's is {_kind(own)}; {_OURS}")


def check_watch(path: Path | str, saved: Mapping[str, Any] | None) -> None:
    """UserError unless ``saved`` is a `LossWatch`'s state, or None."""
    if saved is None:
        return
    reference = saved.get("reference", 0)
    fits = reference is None or (
        isinstance(reference, Tensor) and reference.dim() == 1 and reference.dtype == torch.float32
    )
    if not fits or not isinstance(saved.get("num_seen"), int):
        raise UserError(f"{path}: its watch is not what a run notes of its losses; {_OURS}")
