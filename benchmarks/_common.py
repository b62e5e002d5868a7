"""What the benchmarks share: their tables, the machine's name, the real data, and how one that cannot run ends."""

import csv
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffux2ct.files.atomic import replaced_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = ROOT.parent / "shared" / "data"  # real scans that may lie beside the checkout


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, whole or not at all; the first one's keys are the header."""
    with replaced_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def machine() -> str:
    """The kind of machine, such as x86_64."""
    return platform.machine()


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or machine()


def skip(reason: object) -> NoReturn:
    """End with one line and status 0, so that ``make bench`` goes on; what an earlier run wrote stays."""
    print(f"skipped: {reason}")
    sys.exit(0)
