"""One way to start a Hydra command, so that every command ends bad input in one line."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import redirect_stdout
from importlib.resources import files
from itertools import takewhile
from textwrap import fill
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

RENAMED = (
    (r"dataset\.root=(.*)", r"root=\1"),
    (r"(?:trainer\.)?lr=(.*)", r"optim.lr=\1"),
    (r"(?:trainer\.)?steps=(.*)", r"trainer.max_steps=\1"),
    (r"sampler\.steps=(.*)", r"sampler.num_inference_steps=\1"),
    (r"sampler\.name=(.*)", r"sampler=\1"),
    (r"sampler\.perturbation=(.*)", r"perturbation=\1"),
    (r"sampler\.perturbation=(.*)", r"model.perturbation=\1"),
    (r"metrics=(paper|x2ct|psct|strict)", r"metrics.protocol=\1"),
    (r"metrics=(distortion)", r"metrics.families=[\1]"),
    (r"(?:widths|model)=(paper|small|tiny)", r"size=\1"),
    (r"widths\.([^=]*)=(.*)", r"size=paper, small or tiny, or sizes.SIZE.\1=\2"),
    (r"diffusion=(epsilon|v|x0)", r"objective=\1"),
    (r"loss=no_projection", r"loss.projection_weight=0"),
    (r"loss=(l1|l2)", r"loss.norm=\1"),
    (r"timesteps=(.*)", r"diffusion.timesteps=\1"),
    (r"loss=(paper|snr)", r"loss.projection_mode=\1"),
    (r"logger=wandb", r"logger.wandb.mode=online"),
    (r"logger=tensorboard", r"logger.tensorboard=true"),
    (r"trainer=laptop", r"scale=laptop"),
    (r"denoiser=.*", r"model=diffux2ct"),
    (r"optim=adam_gan", r"model=x2ct_gan"),
    (r"experiment=x2ct_gan_paper", r"model=x2ct_gan"),
)
"""Words that earlier versions took, or that users try: what to write in their place, where the command has that key."""


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
                # A word in place of a group of settings, or one that any sampler takes; it composes.
                if isinstance(OmegaConf.select(cfg, override.lstrip("+~").partition("=")[0]), str):
                    _check_renamed(override, config_name)
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
    """``group: option, option`` of Hydra's help as an entry an option with the first sentence of its YAML."""
    group, lines = line[1], []
    if not files(CONFIGS).joinpath(group).is_dir() or group == "base":
        return "" if group == "base" else line[0]
    for option in line[2].split(", "):
        if option == "own":  # of evaluate.py and reconstruct.py, which have a run
            continue
        source = files(CONFIGS).joinpath(group, f"{option}.yaml")
        text = source.read_text("utf-8") if source.is_file() else ""
        head = takewhile(lambda line: line.startswith("#"), text.splitlines())
        comment = " ".join(line.removeprefix("# ") for line in head if not line.startswith("# @"))
        sentence = re.split(r"(?<!Eq\.)(?<!Sec\.)(?<=\.) ", comment)[0]
        lines.append(fill(f"  {f'{group}={option}':42} {sentence}".rstrip(), 118, subsequent_indent=" " * 45) + "\n")
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
    for word in sys.argv[1:]:
        _check_renamed(word, config_name)
    if key := re.search(r"[Cc]ould not override '([^']+)'", lines[0]):
        known = _known_keys(config_name, key[1])
        return _of_another_option(key[1], known) or unknown_key(key[1], known)
    option = re.search(r"Could not find '([^']+)/([^']+)'", str(error))
    available = [line for line in lines[1:] if re.fullmatch(r"[\w\-.]+", line)]
    if option and available:
        hint = did_you_mean(option[2], available)
        return f"{option[1]}={option[2]} does not exist; {hint}choose one of {', '.join(available)}"
    return " ".join(lines[:3])


def _check_renamed(word: str, config_name: str) -> None:
    """UserError with the words to write in place of one that is in ``RENAMED``."""
    for old, new in RENAMED:
        if match := re.fullmatch(old, word):
            instead = match.expand(new)
            if instead.partition("=")[0] in _known_keys(config_name, word.partition("=")[0]):
                raise UserError(f"{word}: no such setting; write {instead}")


def _of_another_option(key: str, known: Sequence[str]) -> str:
    """The message for a key that an option of its group has that is not chosen; empty for another key."""
    group, last = key.partition(".")[0], key.rpartition(".")[2]
    folder = files(CONFIGS).joinpath(group)
    if not folder.is_dir() or any(name.startswith(f"{group}.") and name.endswith(f".{last}") for name in known):
        return ""
    options: dict[str, list[str]] = {}
    for option in sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml")):
        text = folder.joinpath(option).read_text("utf-8")
        prefix = "" if "@package _global_" in text else f"{group}."
        for name in _dotted(OmegaConf.to_container(OmegaConf.create(text)), prefix):
            if name.startswith(f"{group}.") and name.endswith(f".{last}"):
                options.setdefault(name, []).append(f"{group}={option.removesuffix('.yaml')}")
    name = key if key in options else next(iter(options), "")
    return name and f"unknown key '{key}'; {name} is a key of {' or '.join(options[name][:3])}, which is not chosen"


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
