"""One way to start a Hydra command, so that every command ends bad input in one line."""

import difflib
import os
import re
from collections.abc import Callable

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffux2ct.cli import run_main
from diffux2ct.errors import UserError


def hydra_app(config_name: str, command: Callable[[DictConfig], object]) -> None:
    """Compose ``configs/<config_name>.yaml`` with the command line's overrides and run ``command`` on it.

    A wrong override, a wrong group choice and a ``UserError`` each print one line and exit with status 1.
    """
    # Hydra would print several lines and hide the exception; with this it raises, and we print one.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @hydra.main(version_base="1.3", config_path="pkg://diffux2ct.configs", config_name=config_name)
    def task(cfg: DictConfig) -> None:
        # Also inside the job: Hydra would print a line of its own before it passes an exception on.
        _in_one_line(lambda: command(cfg))

    _in_one_line(task)


def _in_one_line(command: Callable[[], object]) -> None:
    def explained() -> None:
        try:
            command()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error)) from error

    run_main(explained)


def _explain(error: Exception) -> str:
    """Hydra's several lines as one, with the nearest existing key where one was misspelt."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if missing:
        return f"{missing[1]} is not given; add {missing[1]}=... to the command (--help explains it)"
    key = re.search(r"[Cc]ould not override '([^']+)'", text)
    if key:
        return f"unknown override '{key[1]}'; see --help for the keys (prefix '+' adds a new one)"
    option = re.search(r"Could not find '([^']+)/([^']+)'", str(error))
    available = [line for line in lines[1:] if re.fullmatch(r"[\w\-.]+", line)]
    if option and available:
        near = difflib.get_close_matches(option[2], available, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{option[1]}={option[2]} does not exist; {hint}choose one of {', '.join(available)}"
    return " ".join(lines[:3])
