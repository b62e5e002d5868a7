"""Files recognised by first bytes and name, with the standard library alone: DICOM, and other scans."""

import gzip
import re
import zlib
from pathlib import Path

DICOM_SUFFIXES = (".dcm", ".ima")
_PREAMBLE, _MAGIC = 128, b"DICM"


def has_dicom_magic(path: str | Path) -> bool:
    """True if DICOM's magic word follows a file's preamble; False for what is no file or cannot be read."""
    return _head(Path(path))[_PREAMBLE:] == _MAGIC


def named_dicom(path: str | Path) -> bool:
    """True if a name ends in ``.dcm`` or ``.ima``; the file is not opened."""
    return Path(path).suffix.lower() in DICOM_SUFFIXES


def is_dicom(path: str | Path) -> bool:
    """True if a file has DICOM's magic word, or a DICOM suffix and is not empty."""
    head = _head(Path(path))
    return head[_PREAMBLE:] == _MAGIC or (named_dicom(path) and len(head) > 0)


def is_image(path: Path) -> bool:
    """True if a file of any name is NIfTI (packed or not), NRRD or MetaImage by its first bytes."""
    head = _head(path, 4096)
    try:
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(4096)
    except (OSError, EOFError, zlib.error):
        return False
    nifti = head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")
    return nifti or head.startswith(b"NRRD000") or re.search(rb"^\s*NDims\s*=", head, re.MULTILINE) is not None


def _head(path: Path, size: int = _PREAMBLE + len(_MAGIC)) -> bytes:
    """The first bytes, by default those up to DICOM's magic word.

    A FIFO or a device is never opened: reading it could wait for ever.
    """
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""
