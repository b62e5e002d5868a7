"""A DICOM series, in one folder or several, as one CT volume."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset

from diffux2ct.data.io.dicom.frames import Frame, SeriesInfo, frames_of, plain_text, read_header
from diffux2ct.data.io.dicom.kind import is_dicom
from diffux2ct.data.io.dicom.stack import read_stack
from diffux2ct.errors import UserError


def read_series(
    path: str | Path, series_uid: str | None = None, patient: str | None = None, folders: Sequence[Path] = ()
) -> tuple[sitk.Image, list[str]]:
    """Read a CT series in HU; path: its folder, or one of its files. Also returns notes on what was left out.

    Of several series, the CT series of ``series_uid`` and ``patient`` (PatientID) with most slices is taken; slices of
    two patients never meet in one volume. folders: where its files lie, if not in ``path`` itself. Raises UserError: no
    DICOM, no CT, one slice, missing slices, a file that cannot be decoded.
    """
    path, patient = Path(path), None if patient is None else plain_text(patient)
    if not path.is_dir():
        own = read_header(path)[0]
        series_uid, patient, folders = own.uid, own.patient, [path.parent]
    files, damaged = _headers(folders or [path])
    series = series_of(info for _, info, _ in files)
    if not series:
        raise UserError(damaged[0] if damaged else f"{path}: no DICOM series here; {_advice(path)}")
    candidates = [i for i in series if series_uid in (None, i.uid) and patient in (None, i.patient)]
    if not candidates:
        raise UserError(f"{path}: no series {series_uid} here; there are {', '.join(i.uid for i in series)}")
    scans = [info for info in candidates if info.modality == "CT"]
    if not scans:
        modalities = ", ".join(sorted({info.modality for info in candidates}))
        raise UserError(f"{path}: DICOM of modality {modalities}, not CT; give a CT series")
    chosen = scans[0]
    frames: list[Frame] = []
    for file, info, header in files:
        if _key(info) == _key(chosen):
            frames += frames_of(file, header)
    image, notes = read_stack(frames, path)
    if path.is_dir():
        for info in series:
            of = " of another patient" if info.patient != chosen.patient else ""
            if info != chosen:
                notes.append(f"{path}: series {info.uid} ({info.modality}, {info.num_slices} slices){of} skipped")
    if damaged:
        notes.append(f"{path if path.is_dir() else path.parent}: {len(damaged)} files skipped; the first: {damaged[0]}")
    return image, notes


def is_one_series(folders: Sequence[Path], uid: str, patient: str) -> bool:
    """True if the files of one uid and PatientID in several folders are parts of one series.

    False where an anonymiser gave one uid to several scans, or where a scan lies there twice: their slices overlap, and
    do not make an even stack.
    """
    parts = [_axial_frames(folder, uid, patient) for folder in folders]
    parts = [part for part in parts if part]
    if not parts:
        return False
    first = parts[0][0]
    normal = np.cross(*first.axes)
    places = sorted((np.sort([frame.position @ normal for frame in part]) for part in parts), key=lambda own: own[0])
    if any(frame.owner != first.owner for part in parts for frame in part):
        return False  # of other studies, coordinate systems or patients
    if all(below[-1] < above[0] for below, above in pairwise(places)):
        return True
    gaps, own_gaps = np.diff(np.sort(np.concatenate(places))), [np.diff(own) for own in places]
    even = all(len(own) > 0 and np.ptp(own) < 0.1 * np.median(own) for own in own_gaps)
    return not even and bool(gaps.min() > 0.9 * np.median(gaps))


def _axial_frames(folder: Path, uid: str, patient: str) -> list[Frame]:
    files = [
        (file, header) for file, i, header in _headers([folder])[0] if (i.uid, i.patient) == (uid, plain_text(patient))
    ]
    return [f for file, header in files for f in frames_of(file, header) if f.is_axial and f.is_placed]


def series_of(files: Iterable[SeriesInfo]) -> list[SeriesInfo]:
    """The series of some files, by uid, modality and patient, longest first."""
    series: dict[tuple[str, ...], SeriesInfo] = {}
    for info in files:
        first = series.setdefault(_key(info), replace(info, num_slices=0))
        series[_key(info)] = replace(first, num_slices=first.num_slices + info.num_slices)
    return sorted(series.values(), key=lambda info: (-info.num_slices, *_key(info)))


def _key(info: SeriesInfo) -> tuple[str, ...]:
    return (info.uid, info.modality, info.patient)


def _headers(folders: Iterable[Path]) -> tuple[list[tuple[Path, SeriesInfo, Dataset]], list[str]]:
    """Headers of the folders' DICOM files by name, and why others cannot be read."""
    files, damaged = [], []
    for folder in folders:
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be listed ({error.strerror}); give a folder that you may read"
            ) from error
        for path in paths:
            if path.name == "DICOMDIR" or not is_dicom(path):
                continue
            try:
                files.append((path, *read_header(path)))
            except UserError as error:
                damaged.append(str(error))
    return files, damaged


def _advice(folder: Path) -> str:
    """The remedy for a folder without a series."""
    if (folder / "DICOMDIR").is_file():
        return "only the index DICOMDIR; give the folder that holds the slices"
    if any(item.is_dir() for item in folder.iterdir()):
        return "give the one folder below it that holds the slices"
    return "give a CT file or the folder that holds the slices"
