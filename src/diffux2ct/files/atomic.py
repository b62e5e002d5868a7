"""Files and folders that appear whole or not at all, and their SHA-256.

Everything is written beside its place under a hidden name, ``.partial-<name>``, read back, and renamed. An interrupted
process leaves at most such a hidden one, which the next write of the same name replaces.
"""

import errno
import gzip
import hashlib
import math
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffux2ct.errors import NO_ROOM, UserError
from diffux2ct.files.folder_lock import only_writer

PARTIALS = ".partial-*"


def _beside(path: Path, state: str = "partial") -> Path:
    # The name comes last: some writers choose the format by its suffix.
    return path.with_name(f".{state}-{path.name}")


@contextmanager
def replaced_file(path: Path, sync: bool = False) -> Iterator[Path]:
    """A hidden file to write, which replaces ``path`` at the end of the block unless the block raises.

    ``sync``: the file and its name are on the disk when the block ends, so that a power failure cannot undo it.
    Raises OSError where what was written cannot be read back, and where the disk is full, whatever the block raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    partial.unlink(missing_ok=True)
    try:
        with _true_reason(partial, path):
            yield partial
            if sync:
                _sync(partial)
        os.replace(partial, path)
        if sync:
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; bytes of file names that are no text as escapes, ``\\udcfc``."""
    with replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


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

    Two renames, because a folder that holds files cannot be replaced in one. Raises UserError where another process
    writes ``final``.
    """
    final = Path(os.path.realpath(final))  # a link stays one, and its folder on its disk
    partial, former = _beside(final), _beside(final, "former")
    with only_writer(final):
        if former.exists() and not final.exists():  # an earlier process was killed between the two renames
            former.rename(final)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with _true_reason(partial, final):
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
    leaves it without ``record``, which describes the other files: it never describes files of another run. Raises
    UserError where another process writes ``folder``.
    """
    folder = Path(os.path.realpath(folder))
    partial = _beside(folder)
    with only_writer(folder):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with _true_reason(partial, folder):
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


# A write is done when it has been read back. Libraries in C and C++ may drop the error of a full disk (ITK), or raise
# it without its number (torch, h5py).


@contextmanager
def _true_reason(partial: Path, final: Path) -> Iterator[None]:
    """Raises OSError, naming ``final``, where a block that writes ``partial`` failed or ended short of disk space."""
    try:
        yield
        # In a folder, compressed files have come by `replaced_file`.
        written = [path for path in partial.rglob("*") if path.suffix != ".gz"] if partial.is_dir() else [partial]
        if any(path.is_file() and not is_whole(path) for path in written):
            raise OSError(errno.EIO, "could not be read back as it was written", str(final))
    except UserError:  # of something else
        raise
    except Exception as error:
        if (full := _no_room(partial, error)) is not None:
            raise OSError(full, os.strerror(full), str(final)) from error
        raise


def _no_room(partial: Path, error: Exception) -> int | None:
    """The number of the error of a full disk, by its text or by writing more to the largest file; None: there is room.

    safetensors deletes its file before it raises, so that there is room again.
    """
    named = re.search(r"\(os error (\d+)\)", str(error))
    if named and int(named[1]) in NO_ROOM:
        return int(named[1])
    files = [path for path in (partial, *partial.rglob("*")) if path.is_file()]
    more = partial / "more" if partial.is_dir() else partial
    try:
        with max(files, key=lambda path: path.stat().st_size, default=more).open("ab") as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as full:
        return full.errno if full.errno in NO_ROOM else None
    return None


def is_whole(path: Path) -> bool:
    """False where a file's header or its end shows that bytes are missing, or gzip's checksum that they changed.

    Formats, by suffix: npy, NIfTI, MHA, NRRD, PNG, HDF5, safetensors, and gzip around any. Others pass.
    """
    try:
        if path.suffix == ".h5":
            import h5py

            with h5py.File(path):
                return True
        with path.open("rb") as file:
            if path.suffix == ".png":
                file.seek(-12, os.SEEK_END)
                return file.read(12) == b"\0\0\0\0IEND\xaeB`\x82"
            if path.suffix != ".gz":
                return path.stat().st_size >= _expected_size(path.suffix, file.read(2**16))
            size, head = 0, b""
            with gzip.open(file) as inner:
                while data := inner.read(2**20):
                    size, head = size + len(data), head or data
            return size >= _expected_size(path.with_suffix("").suffix, head)
    except (OSError, EOFError, ValueError, LookupError, struct.error):
        return False


_BYTES = {"uchar": 1, "char": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
_NRRD_TYPES = {"unsigned char": "uchar", "signed char": "char", "unsigned short": "ushort", "unsigned int": "uint"}


def _expected_size(suffix: str, head: bytes) -> int:
    """The bytes that a file of this format has at least, by its first bytes; 0 for other formats."""
    if suffix == ".npy":
        import io

        from numpy.lib import format as npy

        start = io.BytesIO(head)
        read = npy.read_array_header_1_0 if npy.read_magic(start) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(start)
        return start.tell() + math.prod(shape) * dtype.itemsize
    if suffix == ".nii":
        axes = struct.unpack("<8h", head[40:56])
        (bits,), (start,) = struct.unpack("<h", head[72:74]), struct.unpack("<f", head[108:112])
        return int(start) + math.prod(axes[1 : 1 + axes[0]]) * bits // 8
    if suffix == ".safetensors":
        (length,) = struct.unpack("<Q", head[:8])
        ends = re.findall(rb'"data_offsets":\[\d+,(\d+)\]', head)
        return 8 + length + max(map(int, ends), default=0)
    if suffix in (".mha", ".nrrd"):
        text, end, _ = head.partition(b"ElementDataFile = LOCAL\n" if suffix == ".mha" else b"\n\n")
        fields = dict(re.findall(r"^(\w[\w ]*?) ?[:=] ?(.*)$", text.decode("latin-1"), re.M))
        if fields.get("encoding", "raw") != "raw" or fields.get("CompressedData", "False") != "False":
            return len(text)
        axes = fields.get("DimSize") or fields["sizes"]
        start = len(text) + len(end)
        kind = fields.get("ElementType", "").removeprefix("MET_").lower() or fields["type"]
        return start + math.prod(map(int, axes.split())) * _BYTES[_NRRD_TYPES.get(kind) or kind]
    return 0
