"""Settings are typed: each kind takes its values and refuses all others in one line with a remedy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from diffux2ct.arguments import (
    Count,
    Device,
    Positive,
    Range,
    Seed,
    Share,
    Three,
    Weights,
    Window,
    check,
    convert,
    read,
    text_keys,
)
from diffux2ct.errors import UserError


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        (bool, "no", False),
        (bool, "Off", False),
        (bool, "yes", True),
        (bool | None, None, None),
        (bool | None, "null", None),
        (int, 10000.0, 10000),
        (float, 3, 3.0),
        (Path, 12, Path("12")),
        (Path | None, None, None),
        (str, "auto", "auto"),
        (Device, "cuda:1", "cuda:1"),
        (Weights, "raw", "raw"),
        (Window | None, [-1000, 900], (-1000.0, 900.0)),
        (Positive | Three, [1, 2, 2.5], (1.0, 2.0, 2.5)),
        (list[Literal["a", "b"]], ["b"], ["b"]),
        (Mapping[str, Share], {"x": 1}, {"x": 1.0}),
        (Any, {"x": 1}, {"x": 1}),
    ],
)
def test_a_value_of_its_kind_is_taken(kind, value, result):
    got = convert(kind, value, "key")
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (bool, "maybe", "key=maybe: not true or false; give true or false"),
        (bool, 0, "key=0: not true or false; give true or false"),
        (bool | None, "maybe", "key=maybe: not true or false; give true or false, or null"),
        (Seed, "abc", "key=abc: not a whole number; give a whole number of at least 0"),
        (Seed, -1, "key=-1: out of range; give a whole number of at least 0"),
        (Seed, 1.5, "key=1.5: not a whole number; give a whole number of at least 0"),
        (Seed, 10**30, f"key={10**30}: out of range; give a whole number of at least 0"),
        (Positive, 10**400, f"key={10**76}"[:81] + "...: not a number; give a number above 0"),
        (Count, True, "key=true: not a whole number; give a whole number of at least 1"),
        (Count, None, "key=null: a value is needed; give a whole number of at least 1"),
        (Count | None, 0, "key=0: out of range; give a whole number of at least 1, or null"),
        (Positive, float("inf"), "key=inf: not a number; give a number above 0"),
        (Share | None, -1, "key=-1: out of range; give a number from 0 to 1, or null"),
        (Annotated[float, Range(0, 5, open=True)], 0, "key=0: out of range; give a number between 0 and 5"),
        (Three, [1, 2], "key=[1, 2]: not three numbers; give three numbers, such as '[1,2,3]'"),
        (Three, "abc", "key=abc: not three numbers; give three numbers, such as '[1,2,3]'"),
        (Three, [0, float("nan"), 0], "key=[0, nan, 0]: not three numbers; give"),
        (Window, [5, 1], "key=[5, 1]: not two rising numbers; give two rising numbers, such as"),
        (Window, 5, "key=5: not two rising numbers"),
        (Weights, "emma", "key=emma: no such choice; choose ema or raw (did you mean ema?)"),
        (Device, "mps", "key=mps: no such choice; give auto, cpu, cuda or cuda:N"),
        (Path, None, "key=null: a value is needed; give a path"),
        (Path, "", "key=: not a path; give a path"),
        (Path, ["a"], "key=['a']: not a path; give a path"),
        (list[Literal["a", "b"]], ["c"], "key=['c']: not a list of a, b; give a list of a, b"),
        (list[str], "a", "key=a: not a list; give a list"),
        (Mapping[str, Share], "abc", "key=abc: not a group of settings"),
        (Mapping[str, Share], {"x": 2}, "key.x=2: out of range"),
    ],
)
def test_any_other_value_is_refused_with_a_remedy(kind, value, message):
    with pytest.raises(UserError) as error:
        convert(kind, value, "key")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Inner:
    on: bool
    file: Path | None = None


@dataclass(frozen=True)
class Outer:
    out: Path
    inner: Inner
    checked: Annotated[Any, Inner]
    title: str = "x"


def test_groups_are_read_with_dotted_names():
    kept = {"on": "off", "file": 3}
    got = read(Outer, {"out": "a", "inner": {"on": "no"}, "checked": kept})
    assert got == Outer(Path("a"), Inner(on=False), kept)
    assert got.checked is kept
    for group in ("inner", "checked"):
        values = {"out": "a", "inner": {"on": True}, "checked": {"on": True}, group: {"on": 3}}
        with pytest.raises(UserError, match=rf"^{group}\.on=3: not true or false"):
            read(Outer, values)


def test_a_setting_that_nothing_reads_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown key 'inner.fil'; did you mean inner.file\?"):
        read(Outer, {"out": "a", "inner": {"on": True, "fil": "x"}})


def test_paths_and_names_of_all_groups_are_text():
    assert set(text_keys(Outer)) == {"out", "inner.file", "checked.file", "title"}


def test_a_dataclass_can_check_itself():
    settings = Inner(on="off", file="1_2")  # type: ignore[arg-type]
    check(settings, "inner.")
    assert settings == Inner(on=False, file=Path("1_2"))
