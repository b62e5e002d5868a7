"""Commands as a user types them, for the hints at the end of messages."""

import re
import shlex
import sys
from pathlib import Path

SCRIPTS = {
    "train": "train.py",
    "evaluate": "evaluate.py",
    "compare": "scripts/compare.py",
    "drr": "scripts/synthesize_drr.py",
    "export_model": "scripts/export_model.py",
    "export_x2ct": "scripts/export_x2ct.py",
    "fetch_weights": "scripts/fetch_weights.py",
    "prepare": "scripts/prepare_dataset.py",
    "reconstruct": "scripts/reconstruct.py",
    "segment": "scripts/segment.py",
    "summarize": "scripts/summarize_model.py",
}
"""Each command's script in the checkout; the installed one is ``diffux2ct-<command>``."""

# Text that Hydra reads as itself: it starts with a letter or as a path, and is none of YAML's words.
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:[a-z]|\.{0,2}/)[\w./-]*", re.ASCII | re.IGNORECASE)


def command(name: str) -> str:
    """A command in the form in which this process was started: ``diffux2ct-evaluate`` or ``python evaluate.py``."""
    if Path(sys.argv[0]).name.startswith("diffux2ct-"):
        return f"diffux2ct-{name.replace('_', '-')}"
    return f"python {SCRIPTS[name]}"


def as_typed(key: str, value: str) -> str:
    """``key=value`` as it is typed into a shell so that Hydra takes the value as the text that it is."""
    if _PLAIN.fullmatch(value):
        return f"{key}={value}"
    return shlex.quote(f"{key}={quoted(value)}")


def quoted(value: str) -> str:
    """Text within Hydra's own quotes, where a backslash counts only before a quote."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" + m[2] if m[2] else ""), value)
    return f'"{escaped}"'
