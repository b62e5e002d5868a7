"""One way to start a Hydra command, so that every command ends bad input in one line."""

import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import redirect_stdout
from importlib.resources import files
from textwrap import shorten

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffux2ct.arguments import text_keys, unknown_key
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

REPLACED = {
    "dataset=phantom_pelvis": "dataset=phantom dataset.generate.region=pelvis",
    "dataset=phantom_thorax": "dataset=phantom dataset.generate.region=thorax",
    "logger=csv": "nothing, it is always written",
    "logger=tensorboard": "logger.tensorboard=true",
    "logger=wandb": "logger.wandb.mode=online",
    "loss=no_projection": "loss.projection_weight=0",
    "loss=paper": "objective=epsilon",
    "loss=snr": "loss.projection_mode=snr",
    "metrics=psct": "metrics.protocol=psct",
    "metrics=strict": "metrics.protocol=strict",
    "metrics=x2ct": "metrics.protocol=x2ct",
    "model=paper": "size=paper",
    "model=small": "size=small",
    "model=tiny": "size=tiny",
    "optim=adam_gan": "'optim.betas=[0.5,0.999]'",
    "trainer=laptop": "scale=laptop",
}
"""Options of groups that earlier versions had, and what to write now."""

SWITCHES = {"no": "false", "off": "false", "yes": "true", "on": "true"}


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
            refuse_new_keys(HydraConfig.get().overrides.task, [str(key) for key in cfg])
            command(cfg)

        # Also inside the job: Hydra would print a line of its own before it passes an exception on.
        _in_one_line(checked, config_name)

    run_main(lambda: refuse_replaced(sys.argv[1:]))
    shown = io.StringIO()
    helps = {"--help", "-h"} & set(sys.argv[1:])
    try:
        with redirect_stdout(shown if helps else sys.stdout):
            _in_one_line(task, config_name)
    finally:  # Hydra exits after its help
        print(in_form(describe_groups(shown.getvalue())), end="")


def describe_groups(text: str) -> str:
    """Help text with each line ``group: option, option`` as a line an option: the first comment of its YAML."""
    lines = []
    for line in text.splitlines(keepends=True):
        listed = re.fullmatch(r"\s*([\w/]+): ([\w, .-]+)\n", line)
        if listed is None or not files(CONFIGS).joinpath(listed[1]).is_dir():
            lines.append(line)
            continue
        for option in listed[2].split(", ") if listed[1] != "base" else ():
            source = files(CONFIGS).joinpath(listed[1], f"{option}.yaml")
            comments = re.findall(r"^# (?!@)(.*)", source.read_text("utf-8") if source.is_file() else "", re.M)
            about = shorten(comments[0], 75, placeholder=" ...") if comments else ""
            lines.append(f"  {f'{listed[1]}={option}':42} {about}".rstrip() + "\n")
    return "".join(lines)


def refuse_replaced(arguments: Sequence[str]) -> None:
    """UserError for a group's option of an earlier version, with what to write now."""
    for word in arguments:
        if word in REPLACED and not files(CONFIGS).joinpath(f"{word.replace('=', '/')}.yaml").is_file():
            raise UserError(f"{word}: does not exist any more; write {REPLACED[word]}")


def refuse_new_keys(overrides: Sequence[str], known: Sequence[str]) -> None:
    """UserError where ``+key=value`` adds a setting at the top, which no command reads."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        if override.startswith("+") and re.fullmatch(r"\w+", key):
            raise UserError(unknown_key(key, [name for name in known if name != key]))


def keep_text(arguments: Sequence[str], keys: Set[str]) -> list[str]:
    """The words of a command line, with the values of ``keys`` in quotes, so that Hydra reads them as plain text.

    Null and what has quotes stay as they are, and so do the lists of a sweep. Of all other keys, no, off, yes and on
    are false and true, as in YAML.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))

    def kept(word: str) -> str:
        key, equals, value = word.partition("=")
        if key.lstrip("+") not in keys and value.lower() in SWITCHES:
            return f"{key}={SWITCHES[value.lower()]}"
        special = value.lower() in ("", "null") or value[0] in "\"'" or (sweep and re.search(r"[,(]", value))
        return word if key.lstrip("+") not in keys or special else f"{key}{equals}{quoted(value)}"

    return [kept(word) for word in arguments]


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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error.override)
    list_like = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if list_like:
        return (
            f"{list_like[1]}={list_like[2]}: a comma parts several values; -m runs once for each, and quotes within "
            f"the quotes keep it as one: {as_typed(list_like[1], list_like[2])}"
        )
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if missing:
        return f"{missing[1]} is not given; add {missing[1]}=... to the command (--help explains it)"
    key = re.search(r"[Cc]ould not override '([^']+)'", text)
    if key and (renamed := RENAMED.get(key[1])) in (known := _known_keys(config_name, key[1])):
        typed = next((word.partition("=")[2] for word in sys.argv if word.startswith(f"{key[1]}=")), "...")
        return f"unknown key '{key[1]}'; write {renamed}={typed}"
    if key:
        near = _nearest(key[1], known)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"unknown key '{key[1]}'; {hint}--cfg job lists the keys, --help explains them"
    option = re.search(r"Could not find '([^']+)/([^']+)'", str(error))
    available = [line for line in lines[1:] if re.fullmatch(r"[\w\-.]+", line)]
    if option and available:
        near = difflib.get_close_matches(option[2], available, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{option[1]}={option[2]} does not exist; {hint}choose one of {', '.join(available)}"
    return " ".join(lines[:3])


def _explain_syntax(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[~+]{0,2}[\w./@-]+", key):
        return f"{override}: is not key=value; where a value has a space, quote all of it: 'key=a b'"
    return f"{override}: has characters with a meaning of their own; quote inside the quotes: {as_typed(key, value)}"


def _known_keys(config_name: str, wrong: str) -> list[str]:
    """Groups and dotted keys that the command knows with its other overrides, or without any if those fail too."""
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
        tree = OmegaConf.to_container(cfg)
        assert isinstance(tree, dict)
        return groups + [key for key in _dotted(tree) if not key.startswith("hydra.")]
    return []


def _dotted(tree: Mapping, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _nearest(key: str, known: list[str]) -> list[str]:
    """The keys that ``key`` is the last part of, else the one spelt most like it."""
    whole = [name for name in known if name.endswith(f".{key}")]
    return whole[:3] or difflib.get_close_matches(key, known, n=1)
