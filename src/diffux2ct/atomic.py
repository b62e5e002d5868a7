"""A folder that is there whole or not at all, whatever ends the work on it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(final: Path) -> Iterator[Path]:
    """A hidden folder to write into, which takes the place of ``final`` if nothing goes wrong.

    Two renames, because a folder that holds files cannot be replaced in one.
    """
    partial, former = (final.with_name(f".{final.name}.{state}") for state in ("partial", "former"))
    if former.exists() and not final.exists():  # an earlier run was killed between the two renames
        former.rename(final)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "reconstructions").mkdir(parents=True)
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
