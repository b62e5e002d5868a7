"""Settings as dataclasses: the annotations say which values a key takes, and ``read`` refuses all others in one line.

A field is a ``bool``, ``int``, ``float``, ``str``, ``Path``, ``Literal``, ``tuple`` or ``list`` of these, a mapping, or
a union; ``Annotated`` adds a ``Range``, ``Form`` or ``Rising``. ``Any`` takes every value; with a dataclass as its mark
the value is checked against that and kept as it is. Numbers are finite. A dataclass within a dataclass is a group of
settings, with a dot in their names.
"""

import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from diffux2ct.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number; ``open`` leaves the bounds themselves out."""

    low: float | int
    high: float | int = math.inf
    open: bool = False

    def __contains__(self, value: float | int) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high > 1e9:
            return f" above {self.low}" if self.open else f" of at least {self.low}"
        return f" between {self.low} and {self.high}" if self.open else f" from {self.low} to {self.high}"


@dataclass(frozen=True)
class Form:
    """Text that matches a regular expression; ``words`` describes it."""

    pattern: str
    words: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None


class Rising:
    """A pair whose first number is smaller than its second."""

    words = "two rising numbers, such as '[-1024,1500]'"

    def __contains__(self, value: tuple[float, float]) -> bool:
        return value[0] < value[1]


Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Size = Annotated[int, Range(1, 2048)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Three = tuple[float, float, float]
Window = Annotated[tuple[float, float], Rising()]
Device = Annotated[str, Form(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")]
Precision = Literal["bf16", "fp32"]
Weights = Literal["ema", "raw"]
Split = Literal["auto", "train", "val", "test"]

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", Path: "a path"}
_SWITCH = {"false": False, "no": False, "off": False, "true": True, "yes": True, "on": True}


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
            raise UserError(not_given(f"{prefix}{key}"))
    return schema(**given)


def check(settings: Any, prefix: str = "") -> None:
    """Convert each field of a dataclass instance to the type of its annotation. Raises UserError as ``read`` does."""
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
        if key in hints and all(kind.type in (bool, int, float, str, NoneType) for kind in _kinds(hints[key])):
            convert(hints[key], value, f"{prefix}{key}")


def not_given(key: str) -> str:
    """The message for a setting without a value."""
    return f"{key} is not given; add {key}=... to the command (--help explains it)"


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a setting that does not exist, with those of the same last name, or else the nearest."""
    last = key.rpartition(".")[2]
    same = [name for name in known if name.endswith(f".{key}")] or [
        name for name in known if name.rpartition(".")[2] == last
    ]
    # Near in its last name too: a common group alone says nothing.
    near = [name for name in known if difflib.get_close_matches(last, [name.rpartition(".")[2]])]
    hint = f"did you mean {' or '.join(same[:3])}? " if same else did_you_mean(key, near)
    return f"unknown key '{key}'; {hint}--cfg job lists the keys, --help explains them"


def did_you_mean(word: Any, known: Sequence[Any]) -> str:
    """A question with the nearest of ``known``, ended by a space; empty without a near one."""
    return "".join(f"did you mean {near}? " for near in difflib.get_close_matches(str(word), map(str, known), n=1))


def check_choice(key: str, value: Any, known: Iterable[Any]) -> None:
    """UserError ``key=value``, with the nearest choice, unless ``value`` is one of ``known``."""
    choices = list(dict.fromkeys(known))
    if value not in choices:
        near = did_you_mean(value, choices)
        listed = f"choose from {', '.join(map(str, choices))}" if not near or len(choices) < 30 else ""
        raise UserError(f"{key}={value}: no such choice; {near}{listed}".rstrip())


def text_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values are free text: paths and names."""
    for key, annotation in get_type_hints(schema, include_extras=True).items():
        kinds = _kinds(annotation)
        if {kind.type for kind in kinds} <= {Path, str, NoneType}:
            yield f"{prefix}{key}"
        for group in filter(None, (kind.group for kind in kinds)):
            yield from text_keys(group, f"{prefix}{key}.")


class _Refused(Exception):
    """A value that an annotation does not allow."""


def convert(annotation: Any, value: Any, key: str) -> Any:
    """``value`` as the first alternative of ``annotation`` that takes it. UserError starts with ``key=value``."""
    try:
        return _converted(annotation, value, key)
    except _Refused:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise UserError(f"{key}={shown}: {_fault_and_remedy(_kinds(annotation), value)}") from None


class _Kind(NamedTuple):
    """One alternative of an annotation: its type, the parts of a Literal, tuple, list or mapping, and its marks."""

    type: Any
    parts: tuple[Any, ...]
    marks: tuple[Any, ...]

    @property
    def group(self) -> Any:
        """The dataclass of a group of settings."""
        return next((part for part in (self.type, *self.marks) if isinstance(part, type) and is_dataclass(part)), None)

    @property
    def name(self) -> str:
        """The type in words: "a whole number"."""
        if self.type is list:
            choices = ", ".join(_kinds(self.parts[0])[0].parts)
            return f"a list of {choices}" if choices else "a list, such as '[1,2]'"
        if self.type is tuple:
            count = {2: "two", 3: "three", 4: "four"}[len(self.parts)]
            return f"{count} numbers, such as '[{','.join('1234'[: len(self.parts)])}]'"
        return _NAMES.get(self.type, "a group of settings, key: value")

    def __str__(self) -> str:
        """The values in words: "a whole number from 0 to 9"."""
        if self.type is Literal:
            *others, last = map(str, self.parts)
            return f"{', '.join(others)} or {last}" if others else last
        words = [mark.words for mark in self.marks if isinstance(mark, Form | Rising)]
        return words[0] if words else self.name + "".join(str(mark) for mark in self.marks if isinstance(mark, Range))


def _kinds(annotation: Any) -> list[_Kind]:
    """The alternatives of an annotation, null first."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for part in get_args(annotation) for kind in _kinds(part)]
        return sorted(kinds, key=lambda kind: kind.type is not NoneType)
    bare, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    return [_Kind(get_origin(bare) or bare, get_args(bare), tuple(marks))]


def _converted(annotation: Any, value: Any, key: str) -> Any:
    for kind in _kinds(annotation):
        try:
            converted = _convert(kind, value, key)
        except _Refused:
            continue
        if all(converted in mark for mark in kind.marks if isinstance(mark, Range | Form | Rising)):
            return converted
    raise _Refused


def _convert(kind: _Kind, value: Any, key: str) -> Any:
    if kind.group and isinstance(value, Mapping):
        checked = read(kind.group, value, f"{key}.")
        return checked if kind.group is kind.type else value
    if kind.type is Any and not kind.group:
        return value
    if kind.type is Mapping and isinstance(value, Mapping):
        return {name: convert(kind.parts[1], item, f"{key}.{name}") for name, item in value.items()}
    if kind.type in (tuple, list) and isinstance(value, Sequence) and not isinstance(value, str):
        parts = kind.parts * len(value) if kind.type is list else kind.parts
        if len(parts) == len(value):
            return kind.type(_converted(part, item, key) for part, item in zip(parts, value, strict=True))
    if kind.type is bool and isinstance(value, bool | str) and str(value).lower() in _SWITCH:
        return _SWITCH[str(value).lower()]
    if kind.type is NoneType and (value is None or str(value).lower() == "null"):
        return None
    if isinstance(value, bool):  # which is a number for Python
        raise _Refused
    if kind.type is Literal and value in kind.parts:
        return value
    if kind.type in (int, float) and _is_number(kind.type, value):
        return kind.type(value)  # type: ignore[arg-type]
    if kind.type in (str, Path) and isinstance(value, str | Path | int | float) and str(value):
        return kind.type(str(value))  # a number is how YAML reads a name of digits
    raise _Refused


def _is_number(kind: type, value: Any) -> bool:
    """True for a finite number that is, for ``int``, whole."""
    finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return finite and (kind is float or value == int(value))


def _fault_and_remedy(kinds: list[_Kind], value: Any) -> str:
    null = ", or null" if kinds[0].type is NoneType else ""
    kinds = [kind for kind in kinds if kind.type is not NoneType]
    first, choice = kinds[0], kinds[0].type is Literal
    if value is None:
        fault = "a value is needed"
    elif choice or any(isinstance(mark, Form) for mark in first.marks):
        fault = "no such choice"
    elif first.type in (int, float) and not isinstance(value, bool) and _is_number(first.type, value):
        fault = "out of range"
    else:
        fault = f"not {first if first.type is tuple else first.name}".partition(", such as")[0]
    near = did_you_mean(value, first.parts).strip() if choice else ""
    wanted = " or ".join(str(kind) for kind in kinds if kind.type is not int or len(kinds) == 1)
    return f"{fault}; {'choose' if choice else 'give'} {wanted}{null}" + (f" ({near})" if near else "")
