"""A folder of DICOM files, or one of them, as one CT volume."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import SimpleITK as sitk
from pydicom import Dataset

from diffux2ct.data.io.dicom.frames import Frame, SeriesInfo, frames_of, read_header
from diffux2ct.data.io.dicom.kind import is_dicom
from diffux2ct.data.io.dicom.stack import read_stack
from diffux2ct.errors import UserError

__all__ = ["SeriesInfo", "list_series", "read_series"]


def list_series(folder: str | Path) -> list[SeriesInfo]:
    """The series whose files lie in a folder (not below it), from headers only, longest first."""
    return _sorted_series(_headers(Path(folder))[0])


def read_series(path: str | Path, series_uid: str | None = None) -> tuple[sitk.Image, list[str]]:
    """Read a CT series in HU; path: its folder, or one of its files. Also returns notes on what was left aside.

    Of several series in a folder, ``series_uid`` is taken, or else the CT series with most slices. Raises UserError: no
    DICOM, no CT, one slice, missing slices, a file that cannot be decoded.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        series_uid = read_header(path)[0].uid
    files, damaged = _headers(folder)
    series = _sorted_series(files)
    if not series:
        raise UserError(damaged[0] if damaged else f"{path}: no DICOM series here; {_advice(folder)}")
    candidates = [info for info in series if series_uid is None or info.uid == series_uid]
    if not candidates:
        raise UserError(f"{path}: no series {series_uid} here; there are {', '.join(i.uid for i in series)}")
    scans = [info for info in candidates if info.modality == "CT"]
    if not scans:
        found = ", ".join(sorted({info.modality for info in candidates}))
        raise UserError(f"{path}: DICOM of modality {found}, not CT; give a CT series")
    chosen = scans[0]
    frames: list[Frame] = []
    for file, info, header in files:
        if (info.uid, info.modality) == (chosen.uid, chosen.modality):
            frames += frames_of(file, header)
    image, notes = read_stack(frames, path)
    if path.is_dir():
        skipped = [i for i in series if i != chosen]
        notes += [f"{path}: series {i.uid} ({i.modality}, {i.num_slices} slices) skipped" for i in skipped]
    if damaged:
        notes.append(f"{folder}: {len(damaged)} files skipped; the first: {damaged[0]}")
    return image, notes


def _headers(folder: Path) -> tuple[list[tuple[Path, SeriesInfo, Dataset]], list[str]]:
    """Headers of a folder's DICOM files by name, and why others cannot be read."""
    found, damaged = [], []
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); give a folder that you may read") from error
    for path in paths:
        if path.name == "DICOMDIR" or not is_dicom(path):
            continue
        try:
            found.append((path, *read_header(path)))
        except UserError as error:
            damaged.append(str(error))
    return found, damaged


def _sorted_series(files: list[tuple[Path, SeriesInfo, Dataset]]) -> list[SeriesInfo]:
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], SeriesInfo] = {}
    for _, info, _ in files:
        key = (info.uid, info.modality)
        counts[key] += info.num_slices
        first.setdefault(key, info)
    series = [replace(info, num_slices=counts[key]) for key, info in first.items()]
    return sorted(series, key=lambda info: (-info.num_slices, info.uid, info.modality))


def _advice(folder: Path) -> str:
    """What to do about a folder without a series."""
    if (folder / "DICOMDIR").is_file():
        return "only the index DICOMDIR; give the folder that holds the slices"
    if any(item.is_dir() for item in folder.iterdir()):
        return "give the one folder below it that holds the slices"
    return "give a CT file or the folder that holds the slices"
