"""One record a metric: its name, title, unit, digits, direction and group, beside the function that computes it.

A metric of two volumes is one function in one file, and needs no other change::

    @metric("nrmse", title="NRMSE", larger_is_better=False, about="RMS error over the range of the truth")
    def nrmse(prediction, target):  # volumes [D, H, W] in [-1, 1]
        ...

It is found by its name in a module of `PACKAGES`, and anywhere else by its dotted path:
``metrics.names=[psnr3d,my_package.my_module.nrmse]``.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from diffux2ct.arguments import check_choice
from diffux2ct.errors import UserError
from diffux2ct.intensity import Window, denormalize_hu

MetricFunction = Callable[[Tensor, Tensor], float]
"""``function(prediction, target)`` of two volumes [D, H, W]."""

_ROOMS = ("fidelity", "perception", "anatomy", "planted", "uncertainty")
PACKAGES = tuple(f"diffux2ct.evaluation.{name}" for name in _ROOMS)
"""All their modules are imported in search of metrics."""

VOLUME = "Volume and slices"
"""Group of a metric that names no other."""

RECORDS_KEY = "metric_records"
"""Of metrics.json: records of metrics that are not part of this package, by key."""

CASE_COUNTS = {"implant_unseen": "labelled screws and rods that even the true volume does not show; not scored"}
"""Columns of per_case.csv that describe the case itself, not its reconstruction: no metrics, without a floor."""

_DIGITS = {"dB": 2, "HU": 1, "mm": 2, "deg": 1}


@dataclass(frozen=True)
class Metric:
    """Name, display and direction of a metric.

    key: in per_case.csv and metrics.json. unit: "dB", "HU", "mm", "deg" or "". larger_is_better: None only for a key
    without a record. about: one line. group: heading in the report. digits: decimals; None: those of the unit.
    floor: True if the mean training volume has a score too. volumes: the scale of a function's volumes. beside: key of
    the share that this error must be read with, as its mean is over matched structures only; "" for other metrics.
    """

    key: str
    title: str
    unit: str = ""
    larger_is_better: bool | None = None
    about: str = ""
    group: str = VOLUME
    digits: int | None = None
    floor: bool = True
    volumes: Literal["unit", "hu"] = "unit"
    beside: str = ""

    def __post_init__(self) -> None:
        if self.digits is None:
            object.__setattr__(self, "digits", _DIGITS.get(self.unit, 3))

    @property
    def heading(self) -> str:
        """Title with the unit: "PSNR (dB)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """1 if larger is better, -1 if smaller is; 0 without a direction."""
        return 0 if self.larger_is_better is None else 1 if self.larger_is_better else -1

    @property
    def direction(self) -> str:
        """Which way is better, in words; "" without a direction."""
        return ("", "larger is better", "smaller is better")[self.sign]

    def plain(self, value: float | int, sign: bool = False) -> str:
        """A value rounded: "20.50"."""
        return f"{value:{'+' if sign else ''}.{self.digits}f}"

    def text(self, value: float | int, sign: bool = False) -> str:
        """A value with its unit, rounded: "20.50 dB"."""
        return f"{self.plain(value, sign)} {self.unit}".rstrip()

    def side(self, difference: float | int) -> str:
        """Judges a difference to another score: "better", "worse", or "" if equal or without a direction."""
        gain = self.sign * difference
        return "better" if gain > 0 else "worse" if gain < 0 else ""

    def better(self, a: float | int, b: float | int) -> bool:
        """True if ``a`` is a better score than ``b``; False of a metric without a direction."""
        return self.side(a - b) == "better"


def plural(count: int, noun: str) -> str:
    """ "1 case", "3 cases"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


_RECORDS: dict[str, Metric] = {}
_FUNCTIONS: dict[str, MetricFunction] = {}
_FAMILIES: list[Callable[[str], Metric | None]] = []
_F = TypeVar("_F", bound=Callable[..., Any])


def metric(key: str, **record: Any) -> Callable[[MetricFunction], MetricFunction]:
    """Decorator: registers a function of two volumes [D, H, W] with the `Metric` of these fields.

    UserError: no direction (``larger_is_better``), a key that another metric has, or an invalid field.
    """
    try:
        own = Metric(key, **{"title": key} | record)  # type: ignore[arg-type]
    except TypeError as error:
        fields = ", ".join(name for name in Metric.__dataclass_fields__ if name != "key")
        raise UserError(f"metric {key}: {error}; its fields are {fields}") from error

    def register(function: MetricFunction) -> MetricFunction:
        known = _FUNCTIONS.get(key)
        # A module that is imported twice (as a file and by its path) registers the same function again.
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise UserError(f"metric {key}: {known.__module__} has one of this name; choose another name")
        computes(own)(function)
        _FUNCTIONS[key] = function
        return function

    return register


def computes(*records: Metric) -> Callable[[_F], _F]:
    """Decorator: registers the records of what a function, or a class, computes. UserError without a direction."""
    for record in records:
        if not isinstance(record.larger_is_better, bool):
            raise UserError(f"metric {record.key}: no direction; add larger_is_better=True or =False to its record")
        _RECORDS[record.key] = record
    return lambda function: function


def computes_keys(function: Callable[[str], Metric | None]) -> Callable[[str], Metric | None]:
    """Decorator: registers a function that gives the record of a key made from a structure's name, or None."""
    _FAMILIES.append(function)
    return function


@lru_cache(maxsize=1)
def _import_all() -> None:
    """Import every module that may hold a metric, once, so that all records are registered."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            importlib.import_module(module.name)


def find_metric(key: str) -> Metric | None:
    """The record of a key; None if it is no metric's."""
    _import_all()
    if key in _RECORDS:
        return _RECORDS[key]
    return next((record for family in _FAMILIES if (record := family(key))), None)


def metric_of(key: str) -> Metric:
    """As `find_metric`; a key without a record keeps its name and has no direction."""
    return find_metric(key) or Metric(key, key)


def function_names() -> list[str]:
    """Keys of the metrics that are functions of two volumes."""
    _import_all()
    return list(_FUNCTIONS)


def function_keys(names: Iterable[str]) -> list[str]:
    """Keys of functions of two volumes, from keys or dotted paths of functions that `metric` decorates.

    UserError: no such name, module or function, or a function without a record.
    """
    keys = [_key_of_path(name) if "." in name else name for name in names]
    for key in keys:
        if key not in _FUNCTIONS:
            own = "or the path of your own function (my_package.my_module.my_metric)"
            check_choice("metrics.names", key, [*function_names(), own])
    return list(dict.fromkeys(keys))


def _key_of_path(path: str) -> str:
    """Import ``package.module.function``; the key under which it is registered."""
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        hint = "is its folder on PYTHONPATH, and are its imports installed?"
        raise UserError(f"metrics.names={path}: {error}; {hint}") from error
    except AttributeError as error:
        raise UserError(f"metrics.names={path}: {module} has no {name}; correct the path") from error
    for key, known in _FUNCTIONS.items():
        if known is function:
            return key
    raise UserError(f'metrics.names={path}: has no record; decorate it with @metric("{name}", larger_is_better=...)')


def measure(
    key: str, prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"], window: Window
) -> float | None:
    """A function of two volumes in [-1, 1] of ``window`` (HU), by its key; None: not finite."""
    if _RECORDS[key].volumes == "hu":
        prediction, target = (denormalize_hu(volume, window) for volume in (prediction, target))
    value = float(_FUNCTIONS[key](prediction, target))
    return value if math.isfinite(value) else None


def foreign_records(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Records of functions outside this package as plain values: other commands may be unable to find them."""
    ours = f"{__name__.partition('.')[0]}."
    return {key: asdict(_RECORDS[key]) for key in keys if not _FUNCTIONS[key].__module__.startswith(ours)}


def read_records(summary: Mapping[str, Any]) -> None:
    """Register the records that metrics.json (``summary``) carries, unless their keys are known."""
    _import_all()
    stored = summary.get(RECORDS_KEY)
    for key, fields in stored.items() if isinstance(stored, dict) else ():
        with suppress(TypeError):
            record = Metric(**fields)
            texts = (record.key, record.title, record.unit, record.about, record.group, record.beside)
            known = record.larger_is_better in (True, False, None) and record.digits in range(16)
            if known and record.key == key and all(isinstance(text, str) for text in texts):
                _RECORDS.setdefault(key, record)
