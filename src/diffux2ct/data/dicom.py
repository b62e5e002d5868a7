"""A DICOM CT series as one SimpleITK image, checked slice by slice."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffux2ct.data.image_file import quiet_stderr
from diffux2ct.errors import UserError

_MODALITY, _SERIES_UID, _POSITION, _ORIENTATION = "0008|0060", "0020|000e", "0020|0032", "0020|0037"
_MAX_TILT = 1.0  # degrees between the stack of slices and their normal


def is_dicom(path: str | Path) -> bool:
    """Whether a file carries DICOM's magic word (or, lacking it, the suffix ``.dcm``)."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def read_series(path: str | Path) -> tuple[sitk.Image, list[str]]:
    """Read a CT series in HU; path: its folder, or one of its files. Also returns notes on what was left aside.

    Of several series in a folder, the CT series with most slices is taken. Slices at a repeated position are dropped.
    Raises UserError: no DICOM, no CT, one slice, missing slices, tilted gantry, a file that cannot be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    series = {
        uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in _series_uids(folder)
    }
    if not series:
        raise UserError(f"{path}: no DICOM series here; give a CT file or the folder that holds the slices")
    modality = {uid: _header(files[0]).get(_MODALITY, "unknown") for uid, files in series.items()}
    if path.is_dir():
        candidates = [uid for uid in series if modality[uid] == "CT"]
    else:
        own = _header(str(path)).get(_SERIES_UID)
        candidates = [uid for uid in series if own is not None and uid.startswith(own)]
        candidates = [uid for uid in candidates if modality[uid] == "CT"]
    if not candidates:
        found = ", ".join(sorted(set(modality.values())))
        raise UserError(f"{path}: DICOM of modality {found}, not CT; give a CT series")
    chosen = max(candidates, key=lambda uid: (len(series[uid]), uid))
    notes = [
        f"{folder}: series {uid} ({modality[uid]}, {len(series[uid])} slices) skipped"
        for uid in sorted(series)
        if uid != chosen and path.is_dir()
    ]
    unread = _unread(folder, {file for files in series.values() for file in files})
    if unread:
        notes.append(f"{folder}: {len(unread)} files skipped, damaged or no images ({', '.join(unread[:3])})")
    files = list(series[chosen])
    if (
        len(files) == 1
    ):  # one slice, or an enhanced CT with all frames in one file: the caller checks the size
        return _read(files, path), notes
    kept = _check_stack(files, path)
    if len(kept) < len(files):
        notes.append(f"{folder}: {len(files) - len(kept)} slices at repeated positions dropped")
    return _read(kept, path), notes


def _series_uids(folder: Path) -> list[str]:
    return list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _unread(folder: Path, files: set[str]) -> list[str]:
    """Names of DICOM files that belong to no series: damaged, or no images."""
    others = (p for p in sorted(folder.iterdir()) if str(p) not in files and p.name != "DICOMDIR")
    return [p.name for p in others if is_dicom(p)]


def _header(file: str) -> dict[str, str]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.LoadPrivateTagsOff()
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{file}: cannot be read, truncated or not DICOM; remove or mend it") from error
    return {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}


def _check_stack(files: list[str], path: Path) -> list[str]:
    """Files without repeated positions; UserError unless they form an even, straight stack."""
    headers = [_header(file) for file in files]
    if any(_POSITION not in header or _ORIENTATION not in header for header in headers):
        raise UserError(f"{path}: slices without a position (ImagePositionPatient); they cannot be stacked")
    positions = np.array([[float(v) for v in header[_POSITION].split("\\")] for header in headers])
    rows = np.array([float(v) for v in headers[0][_ORIENTATION].split("\\")]).reshape(2, 3)
    normal = np.cross(rows[0], rows[1])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    keep = [int(order[0])]
    for index in order[1:]:
        if along[index] - along[keep[-1]] > 1e-3:
            keep.append(int(index))
    if len(keep) < 2:
        raise UserError(f"{path}: a CT with one slice; give the whole series")
    gaps = np.diff(along[keep])
    if gaps.max() > 1.5 * np.median(gaps):
        raise UserError(
            f"{path}: slices are missing (a gap of {gaps.max():.1f} mm where slices lie {np.median(gaps):.1f} mm apart)"
        )
    stack = positions[keep[-1]] - positions[keep[0]]
    tilt = np.degrees(np.arccos(np.clip(stack @ normal / np.linalg.norm(stack), -1.0, 1.0)))
    if tilt > _MAX_TILT:
        raise UserError(f"{path}: the gantry was tilted by {tilt:.1f} degrees; straighten the scan first")
    return [files[i] for i in keep]


def _read(files: list[str], path: Path) -> sitk.Image:
    try:
        with quiet_stderr():
            if len(files) == 1:
                return sitk.ReadImage(files[0])
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(files)
            return reader.Execute()
    except RuntimeError as error:
        raise UserError(
            f"{path}: the series cannot be read, a slice is truncated or differs in size"
        ) from error
