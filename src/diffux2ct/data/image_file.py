"""One image file as SimpleITK reads it, checked: whole, three-dimensional, grey, in HU."""

import contextlib
import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffux2ct.errors import UserError

AIR = -1024  # HU: the floor of what is read, and the border of every resampled or padded volume
# ITK prints warnings of its own to stderr; what matters is said in a UserError or in meta["notes"].
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_image(path: Path) -> sitk.Image:
    """Any image file that SimpleITK knows; UserError, one line, if it is not whole."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_stderr():
            return reader.Execute()
    except RuntimeError as error:
        raise UserError(
            f"{path}: cannot be read, truncated or not a CT volume; fetch or convert it again"
        ) from error


def as_volume(image: sitk.Image, path: Path, min_slices: int = 2) -> sitk.Image:
    """The image, if it is one 3-D volume with one value a voxel; else UserError."""
    channels = image.GetNumberOfComponentsPerPixel()
    if channels > 1:
        raise UserError(
            f"{path}: a colour or vector image ({channels} values a pixel); a CT has one a voxel, in HU"
        )
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = sitk.Extract(image, [*image.GetSize()[:3], 0])
    if image.GetDimension() != 3:
        raise UserError(f"{path}: a {image.GetDimension()}-D image {image.GetSize()}; give one 3-D CT volume")
    if min(image.GetSize()) < min_slices:
        raise UserError(f"{path}: a CT with one slice {image.GetSize()}; give the whole series")
    return image


def clip_to_hu(image: sitk.Image, path: Path) -> sitk.Image:
    """Check that values can be HU; int16 or float32 with padding raised to -1024."""
    values = sitk.GetArrayViewFromImage(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):  # min and max pass NaN on
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise UserError(_non_finite(path, count))
    if low >= 0 or high - low < 100:
        hint = (
            "grey levels, not HU"
            if high <= 255
            else "not HU (is the rescale intercept, often -1024, missing?)"
        )
        raise UserError(f"{path}: values from {low:g} to {high:g} are {hint}; convert the scan to HU first")
    if high > 100_000:
        raise UserError(f"{path}: values up to {high:g} cannot be HU; convert the scan to HU first")
    fits_int16 = values.dtype.kind in "iu" and high <= np.iinfo(np.int16).max
    if low < AIR:
        image = sitk.Clamp(image, image.GetPixelID(), AIR, high)
    return sitk.Cast(image, sitk.sitkInt16 if fits_int16 else sitk.sitkFloat32)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence what ITK's C libraries print beside the exception that they raise."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _check_nifti(path: Path) -> None:
    """UserError if a NIfTI file is cut short or holds NaN.

    ITK's reader fills what is missing with zeros, and makes NaN and infinities zero, and says nothing.
    """
    compressed = path.name.lower().endswith(".gz")
    bad = 0
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            expected, start, floats = _nifti_layout(file.read(540))
            if compressed and floats is None:
                # The last four bytes of a gzip file are the length of what it holds: no need to unpack it all.
                with path.open("rb") as raw:
                    raw.seek(-4, 2)
                    if struct.unpack("<I", raw.read(4))[0] == expected % 2**32:
                        return
            file.seek(start)
            found = start
            while block := file.read(2**22):
                found += len(block)
                if floats is not None:
                    values = np.frombuffer(block, floats, count=len(block) // floats.itemsize)
                    bad += int(np.count_nonzero(~np.isfinite(values)))
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error, ValueError) as error:
        raise UserError(f"{path}: cannot be read, truncated or not NIfTI; fetch the file again") from error
    if found < expected:
        raise UserError(f"{path}: truncated, {found} of {expected} bytes; fetch the file again")
    if bad:
        raise UserError(_non_finite(path, bad))


def _nifti_layout(header: bytes) -> tuple[int, int, np.dtype | None]:
    """Bytes that the file must hold, where the voxels start, and their type if it is floating."""
    for order in "<>":
        size = struct.unpack_from(order + "i", header, 0)[0]
        if size == 348:  # NIfTI-1
            dim = struct.unpack_from(order + "8h", header, 40)
            kind, bits = struct.unpack_from(order + "2h", header, 70)
            (offset,) = struct.unpack_from(order + "f", header, 108)
        elif size == 540:  # NIfTI-2
            dim = struct.unpack_from(order + "8q", header, 16)
            kind, bits = struct.unpack_from(order + "2h", header, 12)
            (offset,) = struct.unpack_from(order + "q", header, 168)
        else:
            continue
        floats = {16: "f4", 64: "f8"}.get(kind)
        count = math.prod(max(n, 1) for n in dim[1 : dim[0] + 1])
        return int(offset) + count * bits // 8, int(offset), np.dtype(order + floats) if floats else None
    raise ValueError("no NIfTI header")


def _non_finite(path: Path, count: int) -> str:
    return f"{path}: {count} voxels are NaN or infinite; mend the file (set them to -1024)"
