"""Checks of a checkpoint's contents; each raises UserError with the file and the fault.

A file of another program, or one changed on purpose, may hold values of any type that PyTorch reads without running
code: every value is checked here before it is used.
"""

import math
from collections.abc import Callable, Iterator, Mapping
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
# Counts must fit the 64 bits in which processes compare them, and the seeds derived from them.
_BELOW = {"step": 2**48, "elapsed": math.inf, "step_backs": 2**8}
# The types of the config's keys that loading uses, beside its model.
_NUMBER, _NONE = (int, float), type(None)
_CONFIG_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (dict,),
    "trainer": (dict,),
    "trainer.max_steps": (int,),
    "dataset": (dict,),
    "dataset.name": (str,),
    "dataset.root": (str,),
    "dataset.size": (int, _NONE),
    "dataset.window": (list,),
    "dataset.xray_normalization": (str,),
    "dataset.labels": (list, _NONE),
    "dataset.generate": (dict, _NONE),
    "dataset.prepare": (dict, _NONE),
    "dataset.randomize": (dict, _NONE),
    "sampler": (dict,),
    "sampler._target_": (str,),
}
_OPTIONAL = {"dataset.labels", "dataset.generate", "dataset.prepare", "dataset.randomize"}
_DEEPEST = 32
_OURS = "use a checkpoint that train.py wrote"
_OF_MODEL = "use a checkpoint of this model"


def check_types(path: Path | str, state: Mapping[str, Any]) -> None:
    """UserError unless the entries present have the types that ``RunState.save`` writes, with no negative count."""
    for key, types in _TYPES.items():
        if key not in state:
            continue
        value = state[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise UserError(f"{path}: its {key} is of type {type(value).__name__}; {_OURS}")
        if key in _BELOW and not 0 <= value < _BELOW[key]:
            raise UserError(f"{path}: its {key} is {value}; {_OURS}")
    for key, value in _leaves(state.get("config", {})):
        if not isinstance(value, (str, bool, int, float, _NONE)):
            raise UserError(f"{path}: its config has {shown(key)} of type {type(value).__name__}; {_OURS}")


def shown(text: Any) -> str:
    """A text from a file, shortened and without line ends, for a message of one line."""
    return repr(str(text))[1:-1][:80]


def _leaves(node: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A config's values by dotted key, and each container that lies too deep, as one that contains itself does."""
    if not isinstance(node, (dict, list)) or depth == _DEEPEST:
        yield prefix, node
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def check_config(path: Path | str, config: Mapping[str, Any]) -> None:
    """UserError unless a checkpoint's config has the parts from which a model is built and used, resolved."""
    for key, types in _CONFIG_TYPES.items():
        parent, _, own = key.rpartition(".")
        holder = config[parent] if parent else config
        if own not in holder and key in _OPTIONAL:
            continue
        if own not in holder:
            raise UserError(f"{path}: its config has no {key}; {_OURS}")
        value = holder[own]
        if not isinstance(value, types) or isinstance(value, bool):
            raise UserError(f"{path}: its config has {key} of type {type(value).__name__}; {_OURS}")
    window = config["dataset"]["window"]
    if len(window) != 2 or not all(isinstance(bound, _NUMBER) for bound in window):
        raise UserError(f"{path}: its config has no dataset.window of two numbers; {_OURS}")
    for key, value in _leaves(config):
        # A saved config is resolved: these would be looked up here, in the environment for one.
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UserError(f"{path}: its config leaves {shown(key)} open ({shown(value)}); {_OURS}")


def check_holds(path: Path | str, state: Mapping[str, Any], *keys: str) -> None:
    """UserError, naming the first missing one, unless a checkpoint's state has all ``keys``."""
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
        if not _is(value, tensor.shape, tensor.dtype):
            raise refuse(f"{name} is {_kind(value)}, where the model has {_kind(tensor)}")
    unknown = [name for name in saved if name not in expected]
    if unknown:
        raise refuse(f"the model has no {shown(unknown[0])}")


def _is(value: Any, shape: torch.Size, dtype: torch.dtype) -> bool:
    """True for a plain tensor of this shape and dtype, with its values in the file."""
    if not isinstance(value, Tensor) or value.is_nested:  # which has no shape
        return False
    return (value.shape, value.dtype, value.layout, value.is_meta) == (shape, dtype, torch.strided, False)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_nested:
        return f"nested {dtype}"
    odd = "meta " if value.is_meta else "" if value.layout == torch.strided else "sparse "
    return f"{odd}{dtype} {list(value.shape)}"


def check_average(path: Path | str, saved: Any, expected: Mapping[str, Tensor]) -> None:
    """UserError unless ``saved`` is an `Ema`'s state with the tensors ``expected``."""
    saved = saved or {}
    check_fits(path, {k: v for k, v in saved.items() if k != "num_updates"}, expected, "averaged weights")
    updates = saved.get("num_updates")
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 0:
        raise UserError(f"{path}: its averaged weights have no num_updates; {_OURS}")


def check_optimizer(path: Path | str, saved: Any, optimizer: torch.optim.Optimizer, name: str) -> None:
    """UserError unless ``saved`` is the state of an optimiser of this kind, over parameters of these shapes."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path}: its optimiser {name} {problem}; {_OF_MODEL}")

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    groups = groups if isinstance(groups, list) else []
    listed = [group.get("params") if isinstance(group, dict) else None for group in groups]
    count = sum(len(numbers) if isinstance(numbers, list) else 0 for numbers in listed)
    if count != len(parameters):
        raise refuse(f"steps {count} parameters, this model's {len(parameters)}")
    if not isinstance(saved.get("state"), dict):
        raise refuse("has no state")
    expected: dict[str, Any] = {}
    stepped = None  # shape and dtype of the parameter that `expected` belongs to
    for index, values in saved["state"].items():
        if not isinstance(index, int) or not 0 <= index < count or not isinstance(values, dict):
            raise refuse(f"has a state for {shown(index)}, of {count} parameters")
        parameter = parameters[index]
        if stepped != (parameter.shape, parameter.dtype):
            stepped = (parameter.shape, parameter.dtype)
            expected = _state_of_one(optimizer, *stepped)
        if values.keys() != expected.keys():
            raise refuse(f"holds {_names(values)} for a parameter, where this run's holds {_names(expected)}")
        for key, value in values.items():
            _check_entry(refuse, key, value, expected[key])


def _state_of_one(optimizer: torch.optim.Optimizer, shape: torch.Size, dtype: torch.dtype) -> dict[str, Any]:
    """The state that an optimiser of this kind keeps for a parameter. Some keep sums over its rows or columns."""
    kernels = ("fused", "foreach", "capturable")  # these may want a GPU, and keep the same
    defaults = {key: value for key, value in optimizer.defaults.items() if key not in kernels}
    probe = nn.Parameter(torch.zeros(shape, dtype=dtype))
    probe.grad = torch.zeros_like(probe)
    one = type(optimizer)([probe], **defaults)
    one.step()
    return dict(one.state[probe])


def _check_entry(refuse: Callable[[str], UserError], key: str, value: Any, example: Any) -> None:
    if not isinstance(example, Tensor):
        if type(value) is not type(example):
            raise refuse(f"has {key} of type {type(value).__name__}")
        return
    if not _is(value, example.shape, example.dtype):
        raise refuse(f"has {key} {_kind(value)}, where this run's is {_kind(example)}")
    if key == "step" and not 0 <= float(value) < math.inf:
        raise refuse(f"has step {float(value):g}")


def _names(values: Mapping[Any, Any]) -> str:
    return shown(", ".join(str(key) for key in list(values)[:6])) or "nothing"


def check_rng(path: Path | str, saved: Tensor) -> None:
    """UserError unless ``saved`` is a state of PyTorch's generator."""
    own = torch.get_rng_state()
    if not _is(saved, own.shape, own.dtype):
        raise UserError(f"{path}: its rng is {_kind(saved)}, where PyTorch's is {_kind(own)}; {_OURS}")
    try:
        torch.Generator().set_state(saved)
    except RuntimeError as error:
        raise UserError(f"{path}: its rng is no state of PyTorch's generator; {_OURS}") from error


def check_watch(path: Path | str, saved: Mapping[str, Any] | None) -> None:
    """UserError unless ``saved`` is a `LossWatch`'s state, or None."""
    if saved is None:
        return
    reference, seen = saved.get("reference", 0), saved.get("num_seen")
    fits = reference is None or (
        isinstance(reference, Tensor)
        and not reference.is_nested
        and _is(reference, torch.Size([reference.numel()]), torch.float32)
    )
    if not fits or not isinstance(seen, int) or isinstance(seen, bool) or seen < 0:
        raise UserError(f"{path}: loss-watch state is invalid; {_OURS}")
