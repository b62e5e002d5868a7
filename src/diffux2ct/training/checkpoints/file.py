"""Checkpoints: one file, written atomically with its checksum, read without running anything it contains."""

import errno
import hashlib
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from diffux2ct.errors import UserError, remedy
from diffux2ct.files import atomic
from diffux2ct.files.atomic import PARTIALS, replaced_file
from diffux2ct.training.checkpoints.checks import check_types

FORMAT = 1
# A zip's reader looks for the directory from the end and passes over what follows it: torch.load still takes the file.
_TRAILER = re.compile(rb"\ndiffux2ct sha256 ([0-9a-f]{64})\n")
_TRAILER_BYTES = 83
_UNREADABLE = "not a readable checkpoint, perhaps truncated; use another one"


class _Hashed:
    """A file to write into, whose SHA-256 is kept on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha, self.flush = file, hashlib.sha256(), file.flush

    def write(self, data: bytes | memoryview) -> int:
        self.sha.update(data)
        return self.file.write(data)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that ``path`` is always a whole checkpoint: the former one or this one.

    The file ends with the SHA-256 of all before, and is read back. It and its folder are on the disk when this returns.
    UserError where it cannot be written; the former file is then as it was.
    """
    try:
        with replaced_file(path, sync=True) as partial:
            with open(partial, "wb") as file:
                hashed = _Hashed(file)
                torch.save({"format": FORMAT, **state}, hashed)  # type: ignore[arg-type]
                file.write(f"\ndiffux2ct sha256 {hashed.sha.hexdigest()}\n".encode())
            if _sealed_as(partial) != hashed.sha.hexdigest():
                raise OSError(errno.EIO, "could not be read back as it was written")
    except (OSError, RuntimeError) as error:  # of torch
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}: could not write the checkpoint ({reason}); the last one is intact; {remedy(error)}"
        ) from error


def link(path: Path, name: str) -> None:
    """Make ``name``, beside ``path``, the same file: ``last.pt`` and ``best.pt`` take no space of their own."""
    try:
        atomic.link(path, name)
    except OSError as error:
        raise UserError(f"{path.with_name(name)}: could not write it ({error}); {path} is intact") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by ``save``; UserError for a missing, damaged, truncated or foreign file.

    Nothing in it is run: only tensors, numbers, texts and containers of them are read.
    """
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; give a run folder, a file under its checkpoints/ or a model folder"
        )
    if (sealed := _sealed_as(path)) == "":
        raise UserError(f"{path}: damaged, its checksum does not match; use another checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        named = re.search(r"unsupported (?:global|class):? (?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"  # how a bare pickle begins; ours are zip files
        remedy = "is not run; use a checkpoint that train.py wrote"
        fault = f"not a readable checkpoint: it names code ({named[1]}), which {remedy}" if named else _UNREADABLE
        if is_pickle and not named:
            fault = f"a pickle of another program, which {remedy}"
        raise UserError(f"{path}: {fault}") from error
    form = state.get("format") if isinstance(state, dict) else None
    if not isinstance(form, int) or form != FORMAT or "model" not in state:
        raise UserError(f"{path}: not a diffux2ct checkpoint of format {FORMAT}; use one that train.py wrote")
    if not sealed:
        raise UserError(f"{path}: {_UNREADABLE}")
    check_types(path, state)
    return state


def _sealed_as(path: Path) -> str | None:
    """The checksum at a file's end if its bytes match it, "" if they do not, None without one."""
    sha, left = hashlib.sha256(), path.stat().st_size - _TRAILER_BYTES
    with open(path, "rb") as file:
        file.seek(max(0, left))
        trailer = _TRAILER.fullmatch(file.read())
        if trailer is None:
            return None  # truncated or foreign: reading it shows which
        file.seek(0)
        while left > 0 and (data := file.read(min(left, 2**20))):
            sha.update(data)
            left -= len(data)
    return sha.hexdigest() if sha.hexdigest() == trailer[1].decode() else ""


def candidates(folder: Path) -> list[Path]:
    """A run's checkpoints in the order in which resuming tries them; no file twice."""
    last = folder / "last.pt"
    files = sorted(folder.glob("step_*.pt"), reverse=True)
    if last.is_file() and not any(path.samefile(last) for path in files):
        # A run killed between a checkpoint and its link has a newer one than last.pt.
        step = _step_of(last)
        files.insert(sum(int(path.stem.removeprefix("step_")) > step for path in files), last)
    return files


def is_last(folder: Path, path: Path) -> bool:
    """True if ``last.pt`` in ``folder`` is the same file as ``path``."""
    last = folder / "last.pt"
    return last.is_file() and last.samefile(path)


def forget_later(folder: Path, step: int) -> None:
    """Remove checkpoints past ``step``, which a run that went back writes again, and partial ones."""
    for path in folder.glob(PARTIALS):  # left by a kill while it was written
        path.unlink(missing_ok=True)
    for path in folder.glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def forget_later_best(folder: Path, step: int) -> bool:
    """Remove a ``best.pt`` from past ``step``; True if one remains."""
    best = folder / "best.pt"
    if best.is_file() and _step_of(best) > step:
        best.unlink()
    return best.is_file()


def _step_of(path: Path) -> int:
    """A checkpoint's step, without reading its weights; 0 where it cannot be read."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception:
        return 0


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` numbered checkpoints; ``last.pt`` and ``best.pt`` stay."""
    numbered = sorted(folder.glob("step_*.pt"))
    for path in numbered[: max(0, len(numbered) - keep_last)]:
        path.unlink()
