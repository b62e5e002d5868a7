"""Hints name the command in the form in which the user started it, and can be pasted."""

import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from diffux2ct.command_line import SCRIPTS, as_typed, command, in_form

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("started", "name", "hint"),
    [
        ("/opt/env/bin/diffux2ct-train", "evaluate", "diffux2ct-evaluate"),
        ("diffux2ct-train", "export_x2ct", "diffux2ct-export-x2ct"),
        ("train.py", "evaluate", "python evaluate.py"),
        ("scripts/compare.py", "prepare", "python scripts/prepare_dataset.py"),
        ("", "train", "python train.py"),
    ],
)
def test_hints_name_the_command_in_the_form_that_was_started(monkeypatch, started, name, hint):
    monkeypatch.setattr(sys, "argv", [started])
    assert command(name) == hint


def test_messages_are_printed_in_the_form_that_was_started(monkeypatch):
    text = "a: no evaluation; first: python evaluate.py ckpt=a, or prepare_dataset.py, scripts/compare.py; my_train.py"
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    assert in_form(text) == text
    monkeypatch.setattr(sys, "argv", ["/opt/bin/diffux2ct-compare"])
    assert in_form(text) == (
        "a: no evaluation; first: diffux2ct-evaluate ckpt=a, or diffux2ct-prepare, diffux2ct-compare; my_train.py"
    )
    assert in_form("torchrun --n=2 train.py x=1") == "torchrun --n=2 --no-python diffux2ct-train x=1"


def test_every_hint_names_a_script_and_an_installed_command(monkeypatch):
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    monkeypatch.setattr(sys, "argv", ["diffux2ct-train"])
    for name, script in SCRIPTS.items():
        if name == "fetch_weights" and not (ROOT / script).is_file():
            continue
        assert (ROOT / script).is_file()
        assert command(name) in installed
    assert len(installed) <= len(SCRIPTS)


@pytest.mark.parametrize(
    "value",
    [
        "runs/demo",
        "a,b",
        "a=b",
        "x (1)",
        "[1]",
        "it's",
        'say "x"',
        'back\\" slash',
        "ends\\",
        "a b",
        "1",
        "null",
        "NULL",
        "True",
        "nan",
        "-inf",
        ".5",
        ".5e3",
        "1_2",
        "1e3",
        "~/x",
        "./1_2",
        "a:b",
        "",
    ],
)
def test_what_is_printed_to_be_typed_is_read_back_as_it_was(value):
    (word,) = shlex.split(as_typed("ckpt", value))
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        assert compose("evaluate", [word]).ckpt == value


def test_plain_names_are_not_quoted():
    for value in ("runs/demo-loss-paper_trainer.max_steps-4", "/data/1_2/x", "../x.nii.gz"):
        assert as_typed("ckpt", value) == f"ckpt={value}"
