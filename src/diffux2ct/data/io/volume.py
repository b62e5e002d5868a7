"""Read and write CT volumes; the one module that turns orientations and direction cosines into LPS axes.

Whatever a scanner or a converter wrote, a volume leaves here as an array [D, H, W] (z to Superior, y to Posterior,
x to Left) in HU with an identity direction. ``spacing`` and ``origin`` are (x, y, z) in mm, LPS, SimpleITK's order.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from jaxtyping import Num, UInt8

from diffux2ct.data.io.ct_image import CtImage, LabelImage, triple
from diffux2ct.data.io.dicom.kind import is_dicom
from diffux2ct.data.io.dicom.series import read_series
from diffux2ct.data.io.hu import AIR, padding_of
from diffux2ct.data.io.image_file import as_volume, clip_to_hu, read_image
from diffux2ct.errors import NO_ROOM, UserError
from diffux2ct.files.atomic import replaced_file

_OBLIQUE = 1e-4  # largest direction cosine error that counts as rounding; below 0.03 mm over half a metre
# An oblique scan's upright box may hold this many times its voxels; a chest at 45 degrees takes 3.
_MAX_GROWTH = 16


def read_ct(
    path: str | Path,
    series_uid: str | None = None,
    rescale: tuple[float | int, float | int] | None = None,
    *,
    patient: str | None = None,
    folders: Sequence[Path] = (),
) -> CtImage:
    """Read a CT in HU, in any orientation, as an LPS volume with an identity direction.

    path: NIfTI, MHA/MHD or NRRD file; a folder with a DICOM series (of several, the CT series with most slices is
    taken and the others are named in ``meta["notes"]``); or one file of a DICOM series.
    series_uid, patient: SeriesInstanceUID and PatientID of the folder's series that is read.
    folders: where the files of a DICOM series lie, if it is spread over several folders below ``path``.
    rescale: (slope, intercept) of a file of grey levels, HU = slope * grey + intercept; None: its values are HU.
    An oblique scan is resampled (linear, border -1024 HU) onto the LPS axes. Values below -1024 HU become -1024, and so
    does padding of another value (``padding_of``; resampled scans are often padded with 0 HU), with a note.
    Raises UserError for anything but a CT volume in HU, and for a DICOM series with ``rescale``.
    """
    path = Path(path)
    with _one_line(path):
        _check_exists(path, "give a CT file or a folder with a DICOM series")
        if path.is_dir() or is_dicom(path):
            if rescale is not None:
                raise UserError(f"{path}: DICOM carries its own rescale; leave it out of dataset.prepare.rescale")
            kind, (image, notes) = "dicom", read_series(path, series_uid, patient, folders)
        else:
            image, kind, notes = read_image(path)
        image = as_volume(image, path)
        meta = {"path": str(path), "format": kind, **_as_stored(image), "notes": notes}
        if rescale is not None:
            slope, intercept = rescale
            image = sitk.Cast(image, sitk.sitkFloat32) * slope + intercept
            notes.append(f"{path}: grey levels taken as HU = {slope:g} * grey {intercept:+g}")
        image = _padding_to_air(clip_to_hu(image, path), path, notes)
        image = _to_lps(image, path, sitk.sitkLinear, AIR)
        return CtImage(sitk.GetArrayFromImage(image), triple(image.GetSpacing()), triple(image.GetOrigin()), meta)


def read_own_ct(path: str | Path) -> CtImage:
    """Read a NIfTI file that this project wrote. Its values are not judged: a poor model's need not look like HU.

    Raises UserError for a file that is missing, damaged or no volume.
    """
    path = Path(path)
    with _one_line(path):
        _check_exists(path, "write it again")
        image = _to_lps(as_volume(read_image(path)[0], path), path, sitk.sitkLinear, AIR)
        return CtImage(sitk.GetArrayFromImage(image), triple(image.GetSpacing()), triple(image.GetOrigin()))


def read_labels(path: str | Path) -> LabelImage:
    """Read a label volume (integers 0..255) in any orientation, as LPS with an identity direction.

    Extent, spacing and direction may differ from the CT's: ``sample_labels`` brings it onto the CT's grid by position.
    Raises UserError for an unreadable file or for values that are no such labels.
    """
    path = Path(path)
    with _one_line(path):
        _check_exists(path, "give a label volume")
        image = as_volume(read_image(path)[0], path, min_slices=1)
        values = sitk.GetArrayViewFromImage(image)
        low, high = values.min(), values.max()
        # A NaN fails both comparisons.
        if not (low >= 0 and high <= 255) or (values.dtype.kind == "f" and np.any(values != np.round(values))):
            raise UserError(f"{path}: labels must be whole numbers from 0 to 255; found {low} to {high}")
        meta = _as_stored(image)
        image = _to_lps(sitk.Cast(image, sitk.sitkUInt8), path, sitk.sitkNearestNeighbor, 0)
        return LabelImage(sitk.GetArrayFromImage(image), triple(image.GetSpacing()), triple(image.GetOrigin()), meta)


def write_nifti(
    path: str | Path, volume: Num[np.ndarray, "D H W"], spacing: Sequence[float | int], origin: Sequence[float]
) -> None:
    """Write an array [D, H, W] as NIfTI with its true affine (spacing, origin: x, y, z in mm, LPS), atomically."""
    path = Path(path)
    try:
        with replaced_file(path) as partial:
            sitk.WriteImage(_to_sitk(volume, spacing, origin), str(partial))
    except RuntimeError as error:
        raise UserError(f"{path}: could not be written ({_last_line(error)}); is the disk full?") from error


def sample_labels(
    labels: LabelImage, spacing: float | int, size: Sequence[int], origin: Sequence[float]
) -> UInt8[np.ndarray, "D H W"]:
    """Nearest labels on an LPS grid of ``size`` voxels (x, y, z) of ``spacing`` mm; 0 outside."""
    image = _to_sitk(labels.labels, labels.spacing, labels.origin)
    return sitk.GetArrayFromImage(_sample(image, (spacing,) * 3, size, origin, sitk.sitkNearestNeighbor, 0))


def use_threads(count: int) -> None:
    """Limit SimpleITK to ``count`` threads in this process."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def _padding_to_air(image: sitk.Image, path: Path, notes: list[str]) -> sitk.Image:
    """The image with padding of one value that is not air's made air, and a note."""
    found = padding_of(sitk.GetArrayViewFromImage(image))
    if found is None:
        return image
    value, padding = found
    notes.append(f"{path}: {100 * padding.mean():.0f}% are padding of exactly {value:g} HU; taken for air")
    hu = sitk.GetArrayFromImage(image)
    hu[padding] = AIR
    cleared = sitk.GetImageFromArray(hu)
    cleared.CopyInformation(image)
    return cleared


def _as_stored(image: sitk.Image) -> dict[str, Any]:
    """Entries of ``meta`` about the grid of an image before it is turned."""
    return {
        "orientation": sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()),
        "spacing": [float(s) for s in image.GetSpacing()],
        "size": list(image.GetSize()),
        "corners": _corners(image),
    }


def _corners(image: sitk.Image) -> np.ndarray:
    """Centres of the corner voxels, mm LPS [8, 3] (x, y, z)."""
    ends = [(0, side - 1) for side in image.GetSize()]
    return np.array([image.TransformIndexToPhysicalPoint(corner) for corner in product(*ends)])


def _to_lps(image: sitk.Image, path: Path, interpolator: int, outside: int) -> sitk.Image:
    """Permute and flip to LPS, then resample a remaining rotation onto the axes, on the box that holds it all."""
    image = sitk.DICOMOrient(image, "LPS")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if np.abs(direction - np.eye(3)).max() <= _OBLIQUE:
        image.SetDirection(np.eye(3).ravel().tolist())
        return image
    spacing = np.array(image.GetSpacing())
    points = _corners(image)
    size = np.ceil(np.ptp(points, axis=0) / spacing - 1e-6).astype(int) + 1
    if math.prod(size.tolist()) > _MAX_GROWTH * math.prod(image.GetSize()):
        raise UserError(
            f"{path}: so oblique and thin that upright it would fill {size.tolist()} voxels; resample it first"
        )
    return _sample(image, spacing.tolist(), size.tolist(), points.min(axis=0).tolist(), interpolator, outside)


def _sample(
    image: sitk.Image,
    spacing: Sequence[float | int],
    size: Sequence[int],
    origin: Sequence[float | int],
    interpolator: int,
    outside: int,
) -> sitk.Image:
    """An image's samples on an LPS grid of ``size`` voxels (x, y, z); ``outside`` where there is none."""
    upright = np.eye(3).ravel().tolist()
    start, steps = [float(o) for o in origin], [float(s) for s in spacing]
    return sitk.Resample(image, [int(s) for s in size], sitk.Transform(), interpolator, start, steps, upright, outside)


def _to_sitk(
    array: Num[np.ndarray, "D H W"], spacing: Sequence[float | int], origin: Sequence[float | int]
) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    return image


def _check_exists(path: Path, remedy: str) -> None:
    """UserError unless there is a file or folder: a FIFO or a device could block for ever."""
    if not path.exists():
        fault = "a symbolic link that leads nowhere" if path.is_symlink() else "no such file or folder"
        raise UserError(f"{path}: {fault}; {remedy}")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder (a pipe or device?); {remedy}")


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn an error of the system or of ITK into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:  # decoding some JPEG takes a temporary file
            raise UserError(f"{path}: {tempfile.gettempdir()} is full; free space there, or set TMPDIR") from error
        reason = error.strerror or type(error).__name__
        raise UserError(f"{error.filename or path}: {reason}; check the file and your permission to read it") from error
    except (MemoryError, RuntimeError) as error:  # SimpleITK raises RuntimeError, also where memory is short
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise UserError(f"{path}: cannot be read as a volume ({_last_line(error)}); convert it again") from error
        raise UserError(f"{path}: too large for this machine's memory; crop the scan first") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
