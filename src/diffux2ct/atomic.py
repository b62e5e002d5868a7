"""Files and folders that appear whole or not at all, and their SHA-256.

Everything is written beside its place under a hidden name, ``.partial-<name>``, and renamed. An interrupted process
leaves at most such a hidden one, which the next write of the same name replaces.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIALS = ".partial-*"


def _beside(path: Path, state: str = "partial") -> Path:
    # The name comes last: some writers choose the format by its suffix.
    return path.with_name(f".{state}-{path.name}")


@contextmanager
def replaced_file(path: Path, sync: bool = False) -> Iterator[Path]:
    """A hidden file to write, which replaces ``path`` at the end of the block unless the block raises.

    ``sync``: the file and its name are on the disk when the block ends, so that a power failure cannot undo it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    partial.unlink(missing_ok=True)
    try:
        yield partial
        if sync:
            _sync(partial)
        os.replace(partial, path)
        if sync:
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def link(path: Path, name: str) -> None:
    """Make ``name``, beside ``path``, the same file; a copy where the file system has no hard links."""
    with replaced_file(path.with_name(name), sync=True) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


@contextmanager
def replaced_folder(final: Path) -> Iterator[Path]:
    """A hidden folder to write into, which replaces ``final`` at the end of the block unless the block raises.

    Two renames, because a folder that holds files cannot be replaced in one.
    """
    partial, former = _beside(final), _beside(final, "former")
    if former.exists() and not final.exists():  # an earlier process was killed between the two renames
        former.rename(final)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(former, ignore_errors=True)
        if final.exists():
            final.rename(former)
        partial.rename(final)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not final.exists():
            former.rename(final)


@contextmanager
def replaced_files(folder: Path, record: str) -> Iterator[Path]:
    """A hidden folder whose files are moved into ``folder`` at the end of the block, ``record`` last.

    Other files of ``folder`` stay. A block that raises leaves ``folder`` as it was; an interruption while files move
    leaves it without ``record``, which describes the other files: it never describes files of another run.
    """
    folder = folder.absolute()
    partial = _beside(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        folder.mkdir(exist_ok=True)
        (folder / record).unlink(missing_ok=True)
        for file in sorted(partial.iterdir(), key=lambda path: (path.name == record, path.name)):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's file hashes in the order of their names, hidden files left out."""
    if path.is_dir():
        hashes = [sha256_of(p) for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
