"""CT volumes in and out: the door to the only files that know orientation, direction cosines and DICOM.

Whatever a scanner or a converter wrote, a volume leaves here as an array [D, H, W] (z to Superior, y to Posterior,
x to Left) in HU with an identity direction. ``spacing`` and ``origin`` are (x, y, z) in mm, LPS, SimpleITK's order.
"""

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Num

from diffux2ct.data.io.ct_image import CtImage, LabelImage, content_hash, triple
from diffux2ct.data.io.dicom.kind import is_dicom
from diffux2ct.data.io.dicom.series import SeriesInfo, list_series, read_series
from diffux2ct.data.io.grid import (
    Spacing,
    array_to_sitk,
    blur_for,
    crop_or_pad,
    from_sitk,
    resample,
    sample_grid,
    sample_image,
    sample_labels,
)
from diffux2ct.data.io.image_file import AIR, as_volume, clip_to_hu, read_image
from diffux2ct.errors import UserError

__all__ = [
    "CtImage",
    "LabelImage",
    "SeriesInfo",
    "Spacing",
    "blur_for",
    "content_hash",
    "crop_or_pad",
    "list_series",
    "read_ct",
    "read_labels",
    "resample",
    "sample_grid",
    "sample_labels",
    "use_threads",
    "write_nifti",
]

_OBLIQUE = 1e-4  # largest direction cosine error that is taken for rounding; below 0.03 mm over half a metre
_MAX_GROWTH = (
    16  # times the voxels of an oblique scan that its upright box may hold; a chest at 45 degrees takes 3
)


def read_ct(path: str | Path, series_uid: str | None = None) -> CtImage:
    """Read a CT in HU, in any orientation, as an LPS volume with an identity direction.

    path: NIfTI, MHA/MHD or NRRD file; a folder with a DICOM series (of several, the CT series with most slices is
    taken and the others are named in ``meta["notes"]``); or one file of a DICOM series.
    series_uid: which series of the folder, a SeriesInstanceUID as ``list_series`` tells it.
    An oblique scan is resampled (linear, border -1024 HU) onto the LPS axes. Values below -1024 HU (padding) become
    -1024. Raises UserError, one line, for whatever is not a CT volume in HU.
    """
    path = Path(path)
    with _one_line(path):
        _check_exists(path, "give a CT file or a folder with a DICOM series")
        if path.is_dir() or is_dicom(path):
            image, notes = read_series(path, series_uid)
            kind = "dicom"
        else:
            image, kind, notes = read_image(path)
        image = as_volume(image, path)
        meta = {
            "path": str(path),
            "format": kind,
            "orientation": sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
                image.GetDirection()
            ),
            "spacing": [float(s) for s in image.GetSpacing()],
            "size": list(image.GetSize()),
            "notes": notes,
        }
        image = clip_to_hu(image, path)
        image = _to_lps(image, path, sitk.sitkLinear, AIR)
        return from_sitk(image, meta)


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
        if not (low >= 0 and high <= 255) or (
            values.dtype.kind == "f" and np.any(values != np.round(values))
        ):
            raise UserError(f"{path}: labels must be whole numbers from 0 to 255; found {low} to {high}")
        image = _to_lps(sitk.Cast(image, sitk.sitkUInt8), path, sitk.sitkNearestNeighbor, 0)
        return LabelImage(
            sitk.GetArrayFromImage(image), triple(image.GetSpacing()), triple(image.GetOrigin())
        )


def write_nifti(
    path: str | Path,
    volume: Num[np.ndarray, "D H W"],
    spacing: Sequence[float | int],
    origin: Sequence[float],
) -> None:
    """Write an array [D, H, W] as NIfTI with its true affine (spacing, origin: x, y, z in mm, LPS), atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix chooses the format, so the temporary name keeps it.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        sitk.WriteImage(array_to_sitk(volume, spacing, origin), str(partial))
        os.replace(partial, path)
    except RuntimeError as error:
        raise UserError(f"{path}: could not be written ({_last_line(error)}); is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def use_threads(count: int) -> None:
    """Threads that SimpleITK may use in this process; worker processes take one each."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def _to_lps(image: sitk.Image, path: Path, interpolator: int, outside: int) -> sitk.Image:
    """Permute and flip to LPS; what is left of a rotation is resampled onto the axes, on the box that holds it all."""
    image = sitk.DICOMOrient(image, "LPS")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if np.abs(direction - np.eye(3)).max() <= _OBLIQUE:
        image.SetDirection(np.eye(3).ravel().tolist())
        return image
    spacing, shape = np.array(image.GetSpacing()), np.array(image.GetSize())
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (shape - 1)
    points = np.array(
        [image.TransformContinuousIndexToPhysicalPoint(c.astype(float).tolist()) for c in corners]
    )
    size = np.ceil(np.ptp(points, axis=0) / spacing - 1e-6).astype(int) + 1
    if math.prod(size.tolist()) > _MAX_GROWTH * math.prod(image.GetSize()):
        raise UserError(
            f"{path}: so oblique and thin that upright it would fill {size.tolist()} voxels; resample it first"
        )
    return sample_image(
        image, spacing.tolist(), size.tolist(), points.min(axis=0).tolist(), interpolator, outside
    )


def _check_exists(path: Path, remedy: str) -> None:
    """UserError unless there is a file or folder: a FIFO or a device could block for ever."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a symbolic link that leads nowhere; {remedy}")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {remedy}")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder (a pipe or device?); {remedy}")


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the system or ITK refuse, as a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        ):  # decoding some JPEG takes a temporary file
            raise UserError(
                f"{path}: {tempfile.gettempdir()} is full; free space there, or set TMPDIR"
            ) from error
        told = error.strerror or type(error).__name__
        raise UserError(
            f"{error.filename or path}: {told}; check the file and your permission to read it"
        ) from error
    except MemoryError as error:
        raise UserError(f"{path}: too large for this machine's memory; crop the scan first") from error
    except RuntimeError as error:  # from SimpleITK
        if "alloc" not in str(error):
            raise
        raise UserError(f"{path}: too large for this machine's memory; crop the scan first") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
