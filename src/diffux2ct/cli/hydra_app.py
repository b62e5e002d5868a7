"""One way to start a Hydra command, so that every command ends bad input in one line."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import redirect_stdout
from importlib.resources import files
from textwrap import shorten
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffux2ct.arguments import did_you_mean, not_given, text_keys, unknown_key
from diffux2ct.cli import run_main
from diffux2ct.command_line import as_typed, in_form, quoted
from diffux2ct.errors import UserError

CONFIGS = "diffux2ct.configs"

RENAMED = {
    "dataset.root": "root",
    "lr": "optim.lr",
    "sampler.name": "sampler",
    "sampler.steps": "sampler.num_inference_steps",
    "steps": "trainer.max_steps",
    "trainer.lr": "optim.lr",
    "trainer.steps": "trainer.max_steps",
    "diffusion": "objective",
    "widths": "size",
}
"""Keys that do not exist, but that users type: what to write in their place, with the same value."""


def hydra_app(config_name: str, command: Callable[[DictConfig], object], schema: type | None = None) -> None:
    """Compose ``configs/<config_name>.yaml`` with the command line's overrides and run ``command`` on it.

    ``schema``: the dataclass of the command's settings; its paths and names reach the command as typed. A wrong
    override, a wrong group choice and a ``UserError`` each print one line and exit with status 1.
    """
    sys.argv[1:] = keep_text(sys.argv[1:], set(text_keys(schema)) if schema else set())
    # Hydra would print several lines and hide the exception; with this it raises, and we print one.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=config_name)
    def task(cfg: DictConfig) -> None:
        def checked() -> None:
            for override in HydraConfig.get().overrides.task:
                if new := re.match(r"\++(\w+)=", override):  # a setting at the top, which no command reads
                    raise UserError(unknown_key(new[1], [str(name) for name in cfg if name != new[1]]))
            command(cfg)

        # Also inside the job: Hydra would print a line of its own before it passes an exception on.
        _in_one_line(checked, config_name)

    shown = io.StringIO()
    helps = {"--help", "-h"} & set(sys.argv[1:])
    try:
        with redirect_stdout(shown if helps else sys.stdout):
            _in_one_line(task, config_name)
    finally:  # Hydra exits after its help
        print(in_form(re.sub(r"^\s*([\w/]+): ([\w, .-]+)\n", _describe_group, shown.getvalue(), flags=re.M)), end="")


def _describe_group(line: re.Match) -> str:
    """``group: option, option`` of Hydra's help as a line an option with the first comment of its YAML."""
    group, lines = line[1], []
    if not files(CONFIGS).joinpath(group).is_dir() or group == "base":
        return "" if group == "base" else line[0]
    for option in line[2].split(", "):
        if option == "own":  # of evaluate.py and reconstruct.py, which have a run
            continue
        source = files(CONFIGS).joinpath(group, f"{option}.yaml")
        comments = re.findall(r"^# (?!@)(.*)", source.read_text("utf-8") if source.is_file() else "", re.M)
        about = shorten(comments[0], 75, placeholder=" ...") if comments else ""
        lines.append(f"  {f'{group}={option}':42} {about}".rstrip() + "\n")
    return "".join(lines)


def keep_text(arguments: Sequence[str], keys: Set[str]) -> list[str]:
    """The words of a command line, with the values of ``keys`` in quotes, so that Hydra reads them as plain text.

    Null and quoted values stay as they are, and so do the lists of a sweep. For all other keys, no, off, yes and on
    are false and true, as in YAML.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    switches = {"no": "false", "off": "false", "yes": "true", "on": "true"}

    def kept(word: str) -> str:
        key, equals, value = word.partition("=")
        if key.lstrip("+") not in keys:
            return f"{key}{equals}{switches.get(value.lower(), value)}"
        special = value.lower() in ("", "null") or value[0] in "\"'" or (sweep and re.search(r"[,(]", value))
        return word if special else f"{key}={quoted(value)}"

    return [kept(word) for word in arguments]


def warn_idle(idle: Mapping[str, str]) -> None:
    """Warn, once for all ranks, of words on the command line that nothing uses. idle: keys or groups, and why."""
    if not HydraConfig.initialized() or int(os.environ.get("RANK", "0")):
        return
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").partition("=")[0]
        for name, reason in idle.items():
            if f"{key}.".startswith(f"{name}."):
                print(f"warning: {override}: no effect, {reason}", file=sys.stderr)


def _in_one_line(command: Callable[[], object], config_name: str) -> None:
    def explained() -> None:
        try:
            command()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, config_name)) from error
        except ValueError as error:
            if "Config group override must be" not in str(error):
                raise
            raise UserError("a group was given a number; give the name of an option (--help lists them)") from error

    run_main(explained)


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's several lines as one, with the nearest existing key or option where one was misspelt."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error.override)
    if listed := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", lines[0]):
        return (
            f"{listed[1]}={listed[2]}: a comma parts several values; -m runs once for each, and quotes within "
            f"the quotes keep it as one: {as_typed(listed[1], listed[2])}"
        )
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return not_given(missing[1])
    if key := re.search(r"[Cc]ould not override '([^']+)'", lines[0]):
        known = _known_keys(config_name, key[1])
        if RENAMED.get(key[1]) not in known:
            return unknown_key(key[1], known)
        typed = next((word.partition("=")[2] for word in sys.argv if word.startswith(f"{key[1]}=")), "...")
        return f"unknown key '{key[1]}'; write {RENAMED[key[1]]}={typed}"
    option = re.search(r"Could not find '([^']+)/([^']+)'", str(error))
    available = [line for line in lines[1:] if re.fullmatch(r"[\w\-.]+", line)]
    if option and available:
        hint = did_you_mean(option[2], available)
        return f"{option[1]}={option[2]} does not exist; {hint}choose one of {', '.join(available)}"
    return " ".join(lines[:3])


def _explain_syntax(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[~+]{0,2}[\w./@-]+", key):
        return f"{override}: is not key=value; where a value has a space, quote all of it: 'key=a b'"
    return f"{override}: has characters with a meaning of their own; quote inside the quotes: {as_typed(key, value)}"


def _known_keys(config_name: str, wrong: str) -> list[str]:
    """Groups and dotted keys of the command with its other overrides, or without any if those fail too."""
    typed = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    others = [word for word in typed if word.partition("=")[0].lstrip("+~") != wrong]
    for overrides in (others, []):
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
                cfg = hydra.compose(config_name, overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            continue
        groups = [group for group in cfg.hydra.runtime.choices if not group.startswith("hydra/")]
        return groups + [key for key in _dotted(OmegaConf.to_container(cfg)) if not key.startswith("hydra.")]
    return []


def _dotted(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
