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

_NUMBER, _NONE = (int, float), type(None)
_STATE: dict[str, tuple[type, ...]] = {
    "config": (dict,),
    "step": (int,),
    "elapsed": _NUMBER,
    "best_score": (*_NUMBER, _NONE),
    "step_backs": (int,),
    "cases": (str, _NONE),
    "watch": (dict, _NONE),
    "model": (dict,),
    "optimizers": (dict,),
    "ema": (dict, _NONE),
    "rng": (Tensor,),
}
# Counts must fit the 64 bits in which processes compare them, and the seeds derived from them.
_BELOW = {"step": 2**48, "elapsed": math.inf, "step_backs": 2**8}
# The types of the config's keys that loading uses, beside its model.
_CONFIG: dict[str, tuple[type, ...]] = {
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
    "sampler": (dict,),
    "sampler._target_": (str,),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "dataset.labels": (list, _NONE),
    "dataset.generate": (dict, _NONE),
    "dataset.prepare": (dict, _NONE),
    "dataset.randomize": (dict, _NONE),
    "dataset.augment": (bool, dict, _NONE),
}
_DEEPEST = 32
_OURS = "use a checkpoint that train.py wrote"
_OF_MODEL = "use a checkpoint of this model"


def check_types(path: Path | str, state: Mapping[str, Any]) -> None:
    """UserError unless the entries present have the types that ``RunState.save`` writes, with no negative count."""
    for key in (key for key in _STATE if key in state):
        _check_type(f"{path}: its {key} is", state[key], _STATE[key])
        if key in _BELOW and not 0 <= state[key] < _BELOW[key]:
            raise UserError(f"{path}: its {key} is {state[key]}; {_OURS}")
    for key, value in leaves(state.get("config", {})):
        _check_type(f"{path}: its config has {shown(key)}", value, (str, bool, *_NUMBER, _NONE))


def _check_type(what: str, value: Any, types: tuple[type, ...]) -> None:
    # A bool is an int to Python.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UserError(f"{what} of type {type(value).__name__}; {_OURS}")


def shown(text: Any) -> str:
    """A text from a file, shortened and without line ends, for a message of one line."""
    return repr(str(text))[1:-1][:80]


def leaves(node: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A config's values by dotted key, and each container that lies too deep, as one that contains itself does."""
    if not isinstance(node, (dict, list)) or depth == _DEEPEST:
        yield prefix, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def check_config(path: Path | str, config: Mapping[str, Any]) -> None:
    """UserError unless a checkpoint's config has the parts from which a model is built and used, resolved."""
    for key, types in (_CONFIG | _OPTIONAL).items():
        parent, _, own = key.rpartition(".")
        holder = config[parent] if parent else config
        if own in holder:
            _check_type(f"{path}: its config has {key}", holder[own], types)
        elif key in _CONFIG:
            raise UserError(f"{path}: its config has no {key}; {_OURS}")
    window = config["dataset"]["window"]
    if len(window) != 2 or not all(isinstance(bound, _NUMBER) for bound in window):
        raise UserError(f"{path}: its config has no dataset.window of two numbers; {_OURS}")
    for key, value in leaves(config):
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
        if not isinstance(saved.get(name), Tensor):
            raise refuse(f"no {name}")
        if not _is_like(saved[name], tensor):
            raise refuse(f"{name} is {_kind(saved[name])}, where the model has {_kind(tensor)}")
    if unknown := [name for name in saved if name not in expected]:
        raise refuse(f"the model has no {shown(unknown[0])}")


def _is_like(value: Any, example: Tensor) -> bool:
    """True for a plain tensor of the example's shape and dtype, with its values in the file."""
    if not isinstance(value, Tensor) or value.is_nested:  # which has no shape
        return False
    own = value.shape, value.dtype, value.layout, value.is_meta
    return own == (example.shape, example.dtype, torch.strided, False)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_nested:
        return f"nested {dtype}"
    odd = "meta " if value.is_meta else "" if value.layout == torch.strided else "sparse "
    return f"{odd}{dtype} {list(value.shape)}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_average(path: Path | str, saved: Any, parameters: Mapping[str, Tensor]) -> None:
    """UserError unless ``saved`` is an `Ema`'s state of these parameters."""
    saved = saved or {}
    expected = {f"average.{name}": value for name, value in parameters.items()}
    check_fits(path, {k: v for k, v in saved.items() if k != "num_updates"}, expected, "averaged weights")
    if not _is_count(saved.get("num_updates")):
        raise UserError(f"{path}: its averaged weights have no num_updates; {_OURS}")


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order of the numbers that the optimiser's state gives them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def check_optimizer(path: Path | str, saved: Any, optimizer: torch.optim.Optimizer, name: str) -> None:
    """UserError unless ``saved`` is the state of an optimiser of this kind, over parameters of these shapes."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path}: its optimiser {name} {problem}; {_OF_MODEL}")

    saved, parameters = saved if isinstance(saved, dict) else {}, parameters_of(optimizer)
    groups = saved.get("param_groups")
    listed = [group.get("params") for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    count = sum(len(numbers) for numbers in listed if isinstance(numbers, list))
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
            raise refuse(f"has {key} {_kind(value)}")
    elif not _is_like(value, example):
        raise refuse(f"has {key} {_kind(value)}, where this run's is {_kind(example)}")
    elif key == "step" and not 0 <= float(value) < math.inf:
        raise refuse(f"has step {float(value):g}")


def _names(values: Mapping[Any, Any]) -> str:
    return shown(", ".join(str(key) for key in list(values)[:6])) or "nothing"


def check_rng(path: Path | str, saved: Tensor) -> None:
    """UserError unless ``saved`` is a state of PyTorch's generator."""
    own = torch.get_rng_state()
    if not _is_like(saved, own):
        raise UserError(f"{path}: its rng is {_kind(saved)}, where PyTorch's is {_kind(own)}; {_OURS}")
    try:
        torch.Generator().set_state(saved)
    except RuntimeError as error:
        raise UserError(f"{path}: its rng is no state of PyTorch's generator; {_OURS}") from error


def check_watch(path: Path | str, saved: Mapping[str, Any] | None) -> None:
    """UserError unless ``saved`` is a `LossWatch`'s state, or None."""
    if saved is None:
        return
    reference = saved.get("reference", 0)
    # Losses in one row, however many.
    fits = reference is None or (
        isinstance(reference, Tensor)
        and not reference.is_nested
        and _is_like(reference, torch.empty(reference.numel(), dtype=torch.float32, device="meta"))
    )
    if not fits or not _is_count(saved.get("num_seen")):
        raise UserError(f"{path}: loss-watch state is invalid; {_OURS}")
