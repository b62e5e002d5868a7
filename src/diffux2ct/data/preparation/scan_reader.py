"""Grey levels of scans that are not in HU, and the numbers that make them HU."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffux2ct.data.prepared.tables import number, read_rows
from diffux2ct.errors import UserError

FIELDS = ("file", "slope", "intercept")
Line = tuple[float | int, float | int]


class GreyLevels:
    """HU = slope * grey + intercept, the same for all files or file by file.

    setting: None; (slope, intercept); or the path of a CSV table with columns file (its path below the raw folder, or
    its name where no other has it), slope and intercept, whose files are mapped while all others are read as they are.
    Raises UserError for anything else.
    """

    def __init__(self, setting: Sequence[float | int] | str | Path | None = None) -> None:
        self.all: Line | None = None
        self.by_file: dict[str, Line] = {}
        self.table = setting
        if isinstance(setting, str | Path):
            self.by_file = _read_table(Path(setting))
        elif setting is not None:
            if len(setting) != 2:
                raise UserError(f"rescale={list(setting)}: give [slope, intercept], a CSV table, or null")
            slope, intercept = setting
            self.all = _line(slope, intercept, "rescale")

    def of(self, source: str) -> Line | None:
        """(slope, intercept) of a file, by its path below the raw folder; None: its values are HU."""
        return self.by_file.get(source, self.all)

    def check_used(self, sources: Sequence[str]) -> None:
        """Settle names without their folders; UserError for a file that is no scan: it would be read as HU."""
        for name in sorted(set(self.by_file) - set(sources)):
            found = [source for source in sources if source.rpartition("/")[2] == name]
            if len(found) != 1:
                raise UserError(f"{self.table}: no scan is named {name}, or several; give paths below raw=")
            self.by_file[found[0]] = self.by_file.pop(name)


def _read_table(path: Path) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    try:
        rows = read_rows(path, FIELDS)
    except OSError as error:
        raise UserError(f"{path}: cannot be read; rescale= is [slope, intercept] or a CSV table") from error
    for row in rows:
        where = f"{path}: {row['file']}"
        line = _line(row["slope"], row["intercept"], where)
        if lines.setdefault(row["file"], line) != line:
            raise UserError(f"{where} is listed twice, with different numbers; delete one of its rows")
    return lines


def _line(slope: Any, intercept: Any, where: str) -> Line:
    try:
        line = number(slope), number(intercept)
    except (TypeError, ValueError):
        line = math.nan, math.nan
    if not all(map(math.isfinite, line)) or line[0] <= 0:
        raise UserError(f"{where}: slope {slope}, intercept {intercept}; give two numbers, the slope above 0")
    return line
