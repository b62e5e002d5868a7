"""Settings as dataclasses: the annotations say which values a key takes, and ``read`` refuses all others in one line.

A field is a ``bool``, ``int``, ``float``, ``str``, ``Path``, ``Literal``, ``tuple`` or ``list`` of these, a mapping, or
a union; ``Annotated`` adds a ``Range``, ``Form`` or ``RISING``. ``Any`` takes what comes; with a dataclass as its mark
the value is checked against that and kept as it is. Numbers are finite. A dataclass within a dataclass is a group of
settings, with a dot in their names.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffux2ct.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number; ``open`` leaves the bounds themselves out."""

    low: float | int = -math.inf
    high: float | int = math.inf
    open: bool = False

    def __contains__(self, value: float | int) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high > 1e9:
            return (f" above {self.low}" if self.open else f" of at least {self.low}") * (self.low > -math.inf)
        return f" between {self.low} and {self.high}" if self.open else f" from {self.low} to {self.high}"


@dataclass(frozen=True)
class Form:
    """Text that matches a regular expression; ``words`` describes it."""

    pattern: str
    words: str


RISING = "rising"
"""Marks a pair whose first number is smaller than its second."""

Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Size = Annotated[int, Range(1, 2048)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Three = tuple[float, float, float]
Window = Annotated[tuple[float, float], RISING]
Device = Annotated[str, Form(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")]
Precision = Literal["bf16", "fp32"]
Weights = Literal["ema", "raw"]
Split = Literal["train", "val", "test"]

_PLAIN_KINDS = (bool, int, float, str, NoneType)
_FALSE, _TRUE = ("false", "no", "off"), ("true", "yes", "on")
_COUNTS = {2: "two", 3: "three"}
_EXAMPLES = {2: "[-1024,1500]", 3: "[1,2,3]"}


def read(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """``values`` as a ``schema``. Raises UserError ``key=value: fault; remedy`` for a key or value that it refuses."""
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in known and key not in ("_target_", "hydra"):
            raise UserError(unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in known]))
    hints = get_type_hints(schema, include_extras=True)
    given = {key: convert(hints[key], values[key], f"{prefix}{key}") for key in known if key in values}
    for key, field in known.items():
        if key not in given and field.default is MISSING:
            raise UserError(f"{prefix}{key} is not given; add {prefix}{key}=... to the command (--help explains it)")
    return schema(**given)


def check(settings: Any, prefix: str = "") -> None:
    """Convert each field of a dataclass instance to what its annotation says. Raises UserError as ``read`` does."""
    for key, kind in get_type_hints(type(settings), include_extras=True).items():
        object.__setattr__(settings, key, convert(kind, getattr(settings, key), f"{prefix}{key}"))


def check_call(target: Any, values: Mapping[str, Any], prefix: str) -> None:
    """UserError unless ``values`` are keyword arguments of the class ``target``, the plain ones of the right type."""
    parameters = signature(target).parameters
    try:
        hints = get_type_hints(target.__init__, include_extras=True)
    except NameError:  # names that only a type checker imports
        hints = {}
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in values.items():
        if key not in parameters and not takes_all and not key.startswith("_"):
            raise UserError(unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in parameters]))
        if key in hints and all(_bare(kind) in _PLAIN_KINDS for kind in _alternatives(hints[key])):
            convert(hints[key], value, f"{prefix}{key}")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a setting that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key '{key}'; {hint}--cfg job lists the keys, --help explains them"


def text_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values are free text: paths and names."""
    for key, kind in get_type_hints(schema, include_extras=True).items():
        kinds = _alternatives(kind)
        if set(kinds) <= {Path, str, NoneType}:
            yield f"{prefix}{key}"
        for group in (*kinds, *(mark for kind in kinds for mark in get_args(kind))):
            if is_dataclass(group) and isinstance(group, type):
                yield from text_keys(group, f"{prefix}{key}.")


def convert(kind: Any, value: Any, key: str) -> Any:
    """``value`` as the annotation ``kind`` wants it. Raises UserError that starts with ``key=value``."""
    if isinstance(value, Mapping):
        for part in _alternatives(kind):
            group = get_args(part)[1] if get_origin(part) is Annotated else part
            if isinstance(group, type) and is_dataclass(group):
                checked = read(group, value, f"{key}.")
                return checked if part is group else value
            if get_origin(part) is not None and issubclass(get_origin(part), Mapping):
                return {name: convert(get_args(part)[1], item, f"{key}.{name}") for name, item in value.items()}
    try:
        return _convert(kind, value)
    except _Refused:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise UserError(f"{key}={shown}: {_fault(kind, value)}; {_remedy(kind, value, key)}") from None


class _Refused(Exception):
    """A value that an annotation does not allow."""


def _convert(kind: Any, value: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _first(parts, value)
    if origin is Annotated:
        if isinstance(parts[1], type):  # the dataclass of a group, to which only a mapping would do
            raise _Refused
        value = _convert(parts[0], value)
        if not all(_allowed(mark, value) for mark in parts[1:]):
            raise _Refused
        return value
    if origin is Literal:
        if isinstance(value, str | int) and value in parts and not isinstance(value, bool):
            return value
        raise _Refused
    if origin in (tuple, list):
        return _sequence(origin, parts, value)
    if origin is not None or is_dataclass(kind):  # mappings, which ``convert`` has taken
        raise _Refused
    return _plain(kind, value)


def _plain(kind: type, value: Any) -> Any:
    if kind is bool:
        word = str(value).lower() if isinstance(value, bool | str) else ""
        if word in _FALSE + _TRUE:
            return word in _TRUE
    elif kind in (int, float):
        if _is_number(kind, value):
            return kind(value)
    elif kind in (str, Path):
        # A number is how YAML reads a name of digits.
        if isinstance(value, str | Path | int | float) and str(value) and not isinstance(value, bool):
            return kind(str(value))
    elif kind is NoneType:
        if value is None or (isinstance(value, str) and value.lower() == "null"):
            return None
    elif isinstance(value, kind):
        return value
    raise _Refused


def _is_number(kind: type, value: Any) -> bool:
    """True for a finite number that is, for ``int``, whole."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return kind is float or value == int(value)


def _first(kinds: Sequence[Any], value: Any) -> Any:
    """``value`` as the first of ``kinds`` that takes it; null before all others."""
    for kind in sorted(kinds, key=lambda kind: kind is not NoneType):
        try:
            return _convert(kind, value)
        except _Refused:
            continue
    raise _Refused


def _sequence(origin: type, parts: Sequence[Any], value: Any) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _Refused
    kinds = [parts[0]] * len(value) if origin is list else parts
    if len(kinds) != len(value):
        raise _Refused
    return origin(_convert(kind, item) for kind, item in zip(kinds, value, strict=True))


def _allowed(mark: Any, value: Any) -> bool:
    if isinstance(mark, Form):
        return re.fullmatch(mark.pattern, value) is not None
    if isinstance(mark, Range):
        return value in mark
    return value[0] < value[1] if mark == RISING else True


def _fault(kind: Any, value: Any) -> str:
    """What is wrong with a value that ``kind`` refuses."""
    part = _main(kind)
    if value is None:
        return "a value is needed"
    if get_origin(part) is list and isinstance(value, Sequence) and not isinstance(value, str):
        part = get_args(part)[0]
    if get_origin(_bare(part)) is Literal or any(isinstance(mark, Form) for mark in get_args(part)):
        return "no such choice"
    if _bare(part) in (int, float) and _is_number(_bare(part), value):
        return "out of range"
    return f"not {_describe(part if get_origin(_bare(part)) is tuple else _bare(part))}"


def _remedy(kind: Any, value: Any, key: str) -> str:
    """What to give in place of a value that ``kind`` refuses."""
    part, null = _main(kind), ", or null" if NoneType in _alternatives(kind) else ""
    choices = [str(choice) for choice in _choices(part)]
    if choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        names = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
        return f"choose {names}{null}" + (f" (did you mean {near[0]}?)" if near else "")
    kinds = [part for part in _alternatives(kind) if part is not NoneType]
    wanted = " or ".join(_describe(part) for part in kinds if part is not int or float not in kinds)
    for plain in map(_bare, _alternatives(kind)):
        if get_origin(plain) is tuple:
            wanted += f", for instance '{key}={_EXAMPLES[len(get_args(plain))]}'"
        if get_origin(plain) is list:
            items = [str(choice) for choice in _choices(get_args(plain)[0])]
            wanted += f" of {', '.join(items)}" if items else f", for instance '{key}=[1,2]'"
    return f"give {wanted}{null}"


def _main(kind: Any) -> Any:
    """The first alternative of a union that is not null."""
    return next(part for part in _alternatives(kind) if part is not NoneType)


def _choices(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _describe(kind: Any) -> str:
    """The values of an annotation in words: "a whole number from 0 to 9"."""
    marks = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    bare = _bare(kind)
    for mark in marks:
        if isinstance(mark, Form):
            return mark.words
    bounds = "".join(str(mark) for mark in marks if isinstance(mark, Range))
    if get_origin(bare) is tuple:
        rising = "rising " if RISING in marks else ""
        return f"{_COUNTS[len(get_args(bare))]} {rising}numbers"
    if get_origin(bare) is list:
        return "a list"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", Path: "a path"}
    return names.get(bare, "a group of settings, key: value") + bounds
