"""One NIfTI file (single or .hdr/.img pair, compressed or not, under any name) as a SimpleITK image.

nibabel reads it: ITK's own NIfTI reader pads a truncated file with zeros, turns NaN into 0, refuses sheared
affines and, of ``a.nii.gz`` beside ``a.nii``, mixes the header of one with the voxels of the other.
"""

import gzip
import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from io import BufferedIOBase
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.fileholders import FileHolder
from nibabel.imageglobals import LoggingOutputSuppressor

from diffux2ct.errors import UserError

MAX_VOXELS = 2**31  # 1290^3: a larger scan must be cropped first, and a damaged header must not ask for terabytes
MAX_DEFLATE = 1100  # how many times smaller deflate can make data, with a little room above its limit of 1032
_UNITS = {"meter": 1000.0, "micron": 0.001}
NO_ORIENTATION = "the header has no orientation; left and right may be swapped"


def _tolerant(kind: Any) -> Any:
    """nibabel's class, reading a qform whose quaternion other programs' rounding left 5e-6 too long."""
    header = type(kind.header_class.__name__, (kind.header_class,), {"quaternion_threshold": -1e-5})
    return type(kind.__name__, (kind,), {"header_class": header})


_KINDS = {b"n+1\0": nib.Nifti1Image, b"ni1\0": nib.Nifti1Pair, b"n+2\0": nib.Nifti2Image, b"ni2\0": nib.Nifti2Pair}
_KINDS = {magic: _tolerant(kind) for magic, kind in _KINDS.items()}


def nifti_kind(head: bytes) -> Any:
    """nibabel's class for a file that starts with ``head`` (352 bytes or more, not compressed); None: no NIfTI."""
    return _KINDS.get(head[344:348]) or _KINDS.get(head[4:8])


def read_nifti(path: Path) -> tuple[sitk.Image, list[str]]:
    """The voxels in their stored type (or scaled by scl_slope), placed by the affine (sform, else qform), and notes.

    Raises UserError: truncated, damaged, a singular affine, a type that is no grey value, more than 2^31 voxels.
    """
    try:
        with ExitStack() as stack, LoggingOutputSuppressor():
            file = stack.enter_context(opened(path))
            kind = nifti_kind(file.read(352))
            file.seek(0)
            files = {"image": FileHolder(fileobj=file), "header": FileHolder(fileobj=file)}
            voxels, voxel_path = file, path
            if kind in (_KINDS[b"ni1\0"], _KINDS[b"ni2\0"]):
                voxel_path = _partner(path)
                voxels = stack.enter_context(opened(voxel_path))
                files["image"] = FileHolder(fileobj=voxels)
            image = kind.from_file_map(files)
            _check_size(path, image, voxel_path, isinstance(voxels, gzip.GzipFile))
            array = np.asanyarray(image.dataobj)
            voxels.read(1)  # a gzip file checks its checksum when it is read past its end
            return _to_sitk(path, image, array)
    except (UserError, MemoryError, PermissionError):
        raise
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise UserError(f"{path}: cannot be read, truncated or damaged NIfTI; fetch the file again") from error


def opened(path: Path) -> BufferedIOBase:
    """A file for reading, unpacked if it is gzip by its content."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


def _partner(path: Path) -> Path:
    """The voxels' file of a two-file NIfTI."""
    stem = path.name.removesuffix(".gz").removesuffix(".hdr")
    found = [p for p in (path.with_name(f"{stem}.img"), path.with_name(f"{stem}.img.gz")) if p.is_file()]
    if not found or not path.name.removesuffix(".gz").endswith(".hdr"):
        raise UserError(f"{path}: a NIfTI header without its voxels; put {stem}.img beside {stem}.hdr")
    return found[0]


def _check_size(path: Path, image: Any, voxel_path: Path, compressed: bool) -> None:
    """UserError before any voxel is read, if the file cannot hold what its header declares."""
    shape, kind = image.shape, image.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise UserError(f"{path}: a colour, complex or binary image ({kind}); a CT has one grey value a voxel, in HU")
    count = math.prod(int(n) for n in shape)
    if count > MAX_VOXELS:
        raise UserError(
            f"{path}: {shape} voxels, too many to read (over 2^31), or a damaged header; crop the scan first"
        )
    have, need = voxel_path.stat().st_size, count * kind.itemsize
    if have * (MAX_DEFLATE if compressed else 1) < need:
        raise UserError(f"{path}: truncated, {have} of {need} bytes; fetch the file again")


def _apart(header: Any, shape: Sequence[int]) -> float:
    """The distance between a corner voxel's places by sform and by qform, in the file's unit; 0 unless it has both."""
    if int(header["qform_code"]) <= 0 or int(header["sform_code"]) <= 0 or len(shape) < 3:
        return 0.0
    with suppress(ValueError):  # a quaternion that is none, which the sform overrides
        corners = np.array([[*corner, 1] for corner in product(*((0, side - 1) for side in shape[:3]))])
        difference = corners @ (header.get_sform() - header.get_qform()).T
        return float(np.linalg.norm(difference[:, :3], axis=1).max())
    return 0.0


def _to_sitk(path: Path, image: Any, array: np.ndarray) -> tuple[sitk.Image, list[str]]:
    notes = []
    header = image.header
    if int(header["qform_code"]) <= 0 and int(header["sform_code"]) <= 0:
        notes.append(f"{path}: {NO_ORIENTATION}")
    if (apart := _apart(header, image.shape)) > 0.5 * min(header.get_zooms()[:3]):
        notes.append(f"{path}: sform and qform place it up to {apart:.0f} mm apart; the sform is taken")
    affine = np.asarray(image.affine, dtype=float)
    affine[:3] *= _UNITS.get(header.get_xyzt_units()[0], 1.0)
    affine[:2] *= -1.0  # RAS to LPS
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise UserError(f"{path}: a singular or infinite affine, so that its voxels have no place; convert it again")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    volume = np.ascontiguousarray(array.T, dtype=array.dtype.newbyteorder("="))
    result = sitk.GetImageFromArray(volume, isVector=False)
    if result.GetDimension() == 3:
        result.SetSpacing(spacing.tolist())
        result.SetOrigin(affine[:3, 3].tolist())
        result.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return result, notes
