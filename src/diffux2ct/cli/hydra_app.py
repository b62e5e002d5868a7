"""One way to start a Hydra command, so that every command ends bad input in one line."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffux2ct.arguments import text_keys
from diffux2ct.cli import run_main
from diffux2ct.command_line import as_typed, quoted
from diffux2ct.errors import UserError

CONFIGS = "diffux2ct.configs"


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
        # Also inside the job: Hydra would print a line of its own before it passes an exception on.
        _in_one_line(lambda: command(cfg), config_name)

    _in_one_line(task, config_name)


def keep_text(arguments: Sequence[str], keys: Set[str]) -> list[str]:
    """The words of a command line, with the values of ``keys`` in quotes, so that Hydra reads them as plain text.

    Null and what has quotes stay as they are, and so do the lists of a sweep.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))

    def kept(word: str) -> str:
        key, equals, value = word.partition("=")
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
            raise UserError(
                "a group was given a number; give the name of an option (--help lists them)"
            ) from error

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
    if key:
        near = _nearest(key[1], _known_keys(config_name, key[1]))
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
