"""Weights of other people's networks, read from a folder or from installed packages; only ``fetch_weights`` downloads.

The packages are not imported, and no file can run code: tensors go through torch's ``weights_only`` loading, pickled
arrays through an unpickler that can build numpy arrays and nothing else.
"""

import importlib.util
import io
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffux2ct.errors import UserError

WEIGHTS_VARIABLE = "DIFFUX2CT_WEIGHTS"
"""Names a folder of weights: what lies there is taken before what packages carry."""


class Unavailable(UserError):
    """A metric cannot be computed here, and nothing is put in its place.

    name: of the metric or its network. reason: what is missing. command: what the user types to get it.
    """

    def __init__(self, name: str, reason: str, command: str) -> None:
        super().__init__(f"{name}: {reason}; {command}")
        self.name, self.reason, self.command = name, reason, command


def find_weights(names: Sequence[str], given: str | Path | None = None) -> Path | None:
    """The first of the files ``names`` in the folder ``given``, or else in `weights_folder`; None without one.

    names: paths within the folder, the preferred first. given: a folder, or the file itself. UserError: it does not
    exist, or the variable names no folder.
    """
    folder = weights_folder() if given is None else Path(given)
    if folder.is_file() and given is not None:
        return folder
    if not folder.is_dir() and given is not None:
        raise UserError(f"{folder}: no such weights; give the file, or a folder with {' or '.join(names)}")
    if not folder.is_dir() and os.environ.get(WEIGHTS_VARIABLE):
        raise UserError(f"{folder}: {WEIGHTS_VARIABLE} names no folder; correct or unset it")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def weights_folder() -> Path:
    """The folder of ``DIFFUX2CT_WEIGHTS``, or else the user's cache, where ``fetch_weights`` puts files."""
    named = os.environ.get(WEIGHTS_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else cache / "diffux2ct" / "weights"


def package_file(package: str, name: str) -> Path | None:
    """The file ``name`` inside an installed top-level package, which is not imported; None where it is absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def read_state_dict(source: Path | bytes, where: str) -> dict[str, Tensor]:
    """Tensors by name from a file that `torch.save` wrote, on the CPU. ``where`` names it in errors.

    UserError: the file cannot be read, holds anything but tensors and plain values, or no named tensors.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{where}: cannot be read as weights; get the file again") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{where}: holds no weights by name; get the file again")
    return tensors


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], where: str, assign: bool = False) -> None:
    """Put ``state`` into ``network``; UserError where a tensor is missing, left over, or of another shape.

    ``assign`` takes the tensors themselves instead of their values, as a network on the meta device needs.
    """
    own = network.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"has {name}, which the network has not" for name in state if name not in own]
    faults += [
        f"has {name} of {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} faults more)" if len(faults) > 1 else ""
        raise UserError(f"{where}: {faults[0]}{more}; get the weights of {type(network).__name__}")
    network.load_state_dict(dict(state), assign=assign)


def read_arrays(path: Path) -> Any:
    """A pickle of numpy arrays in plain containers. UserError: unreadable, or of other types than numpy's arrays."""
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except (OSError, EOFError, ValueError, TypeError, AttributeError, IndexError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: cannot be read as arrays; get the file again") from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays; any other class or function that a pickle names is refused before it is called."""

    _ALLOWED = frozenset({"numpy.ndarray", "numpy.dtype"}) | {
        f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if f"{module_name}.{global_name}" not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is no array")
        # numpy 2 moved its core; the old name still works there but warns.
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
