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
    "summarize": "scripts/summarize_model.py",
}
"""Each command's script in the checkout; the installed one is ``diffux2ct-<command>``."""

# Text that Hydra reads as itself: it starts with a letter or as a path, and is none of YAML's words.
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:[a-z]|\.{0,2}/)[\w./-]*", re.ASCII | re.IGNORECASE)


def command(name: str) -> str:
    """A command in the form in which this process was started: ``diffux2ct-evaluate`` or ``python evaluate.py``."""
    return f"diffux2ct-{name.replace('_', '-')}" if _installed() else f"python {SCRIPTS[name]}"


def in_form(text: str) -> str:
    """A message or help text with each script in it as ``command`` names it, so that it can be pasted."""
    if not _installed():
        return text
    names = {Path(script).name: name for name, script in SCRIPTS.items()}
    scripts = "|".join(map(re.escape, names))
    text = re.sub(rf"(?:python )?(?:scripts/)?\b({scripts})\b", lambda match: command(names[match[1]]), text)
    return re.sub(r"(torchrun\b[^\n]*?) diffux2ct-", r"\1 --no-python diffux2ct-", text)


def _installed() -> bool:
    return Path(sys.argv[0]).name.startswith("diffux2ct-")


def as_typed(key: str, value: str) -> str:
    """``key=value`` as it is typed into a shell so that Hydra takes the value as the text that it is."""
    if _PLAIN.fullmatch(value):
        return f"{key}={value}"
    return shlex.quote(f"{key}={quoted(value)}")


def quoted(value: str) -> str:
    """Text within Hydra's own quotes, where a backslash counts only before a quote."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" + m[2] if m[2] else ""), value)
    return f'"{escaped}"'
