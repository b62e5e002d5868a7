"""DICOM files recognised by first bytes and name, with the standard library alone."""

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


def _head(path: Path) -> bytes:
    """The bytes up to the magic word. A FIFO or a device is never opened: reading it could wait for ever."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))
    except OSError:
        return b""
