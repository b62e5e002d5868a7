"""Tables that people edit: read in any common encoding and separator, or refused in one line that names the cell.

Everything is written as UTF-8. Bytes of a file name that are no text (Python keeps them as lone surrogates) are written
as escapes, ``\\udcfc``, which ``unescaped`` turns back.
"""

import codecs
import csv
import io
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from diffux2ct.errors import UserError

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_ESCAPE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def read_text(path: Path) -> str:
    """A text file in UTF-8, UTF-16 (by its mark) or, where it is neither, Windows' Latin-1, with escapes undone.

    Accents are composed (``plain_name``). Raises OSError where it cannot be opened, and UserError for binary data.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise UserError(f"{path}: no text file; save it as UTF-8")
    return plain_name(unescaped(text))


def unescaped(text: str) -> str:
    """The text with escapes of a file name's bytes turned back into these."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def plain_name(name: str) -> str:
    """A name as one text in every locale and on every disk: UTF-8, accents composed (NFC), which a Mac parts."""
    with suppress(UnicodeEncodeError):  # half a character, of no file's name
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", name)


def read_rows(path: Path, columns: Sequence[str], separators: str = ",;\t") -> list[dict[str, str]]:
    """The rows of a table with a header line; ``separators``: those that may stand between its cells.

    Raises OSError where it cannot be opened, and UserError where it has no row, or a row without one of ``columns``.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(separators, key=header.count))
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error}); give the columns {','.join(columns)}") from error
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path}: no column {', '.join(missing)}; the first line must name {','.join(columns)}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have one name; the first line must name {','.join(columns)}")
    for number, row in enumerate(rows, start=2):
        if empty := [name for name in columns if not row.get(name)]:
            raise UserError(f"{path}: row {number} has no {empty[0]}; give {','.join(columns)} in every row")
    if not rows:
        raise UserError(f"{path}: a header line alone; give a row for each case or file")
    return rows


def number(value: str | float | int) -> float:
    """A cell as a number; ValueError for anything else, 1_024 included, which Python reads as 1024."""
    if "_" in str(value):
        raise ValueError(value)
    return float(value)


def numbers(text: str, count: int, where: str, positive: bool = False) -> list[float]:
    """``count`` finite numbers with spaces between. UserError, which ``where`` begins, for anything else."""
    try:
        values = [number(value) for value in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)) or (positive and min(values) <= 0):
        kind = "a number" if count == 1 else f"{count} numbers with spaces between"
        raise UserError(f"{where} is {text!r}; give {kind}{', above 0' if positive else ''}")
    return values


def check_case_id(where: Path, case_id: str, seen: Collection[str] = ()) -> None:
    """UserError unless a case is named by a plain folder name that no other case has (ignoring case).

    A name with a separator, or with dots alone, could lead a reader or a writer out of its folder.
    """
    if not case_id.strip(". ") or re.search(r"[/\\:\0-\x1f]", case_id):
        raise UserError(f"{where}: {case_id!r} is no name of a case; give a plain folder name below cases")
    if case_id.lower() in seen:
        raise UserError(f"{where}: case {case_id} is listed twice; delete one of its rows")
