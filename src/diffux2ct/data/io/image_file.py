"""One image file as a SimpleITK image, checked: whole, three-dimensional, grey, in HU."""

import contextlib
import gzip
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffux2ct.data.io.hu import AIR, check_hu
from diffux2ct.data.io.nifti_file import MAX_DEFLATE, MAX_VOXELS, NO_ORIENTATION, nifti_kind, opened, read_nifti
from diffux2ct.errors import UserError

_SPACINGS = (0.01, 50.0)  # mm: outside, the unit is wrong
_MAX_EXTENT = 5000.0  # mm
# Other files under the name of a scan, by their first bytes.
_FOREIGN = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"GIF8": "a GIF picture",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a zip archive",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a numpy array",
    b"<": "a web page or XML",
    b"version https://git-lfs": "a git-lfs pointer, not the file itself",
}
# A line of the header that places the axes in the patient.
_ORIENTED = {
    "nrrd": rb"^space: *(left|right|l|r)[-a-z]*\s*$",
    "mha": rb"^\s*(TransformMatrix|Rotation|Orientation)\s*=",
}
_AXES = rb"^\s*NDims\s*[=:]\s*(\S*)"
# A line of the header that scales values or lengths, and that ITK passes over.
_SCALED = (
    rb"^\s*ElementToIntensityFunctionSlope\s*=(?!\s*1(\.0*)?\s*$).*|"
    rb"^\s*ElementToIntensityFunctionOffset\s*=(?!\s*0(\.0*)?\s*$).*|"
    rb"^space units:(?!( *\"(mm|)\")+\s*$).*"
)
# Faults of headers that ITK refuses, by a word of its message.
_ITK = {"spacing": "its spacing is zero or no number", "direction": "its direction is singular"}
# ITK prints warnings of its own to stderr; what matters is said in a UserError or in meta["notes"].
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_image(path: Path) -> tuple[sitk.Image, str, list[str]]:
    """A NIfTI, MetaImage (MHA, MHD) or NRRD file, recognised by its content alone; also its format, and notes.

    Raises UserError if it is none of these or not whole. Voxels may be NaN and of any dimension.
    """
    kind = _sniff(path)
    image, notes = read_nifti(path) if kind.startswith("nii") else _read_itk(path, kind)
    _check_geometry(image, path)
    return image, kind, notes


def as_volume(image: sitk.Image, path: Path, min_slices: int = 2) -> sitk.Image:
    """The image, if it is one 3-D volume with one value a voxel; else UserError."""
    channels = image.GetNumberOfComponentsPerPixel()
    if channels > 1:
        raise UserError(f"{path}: a colour or vector image ({channels} values a pixel); a CT has one a voxel, in HU")
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
    low, high = check_hu(values, path)
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


def _sniff(path: Path) -> str:
    """nii, nii.gz, mha, mhd or nrrd, by content; the UserError for another kind of file names it."""
    try:
        with opened(path) as file:
            head = file.read(4096)
            suffix = ".gz" if isinstance(file, gzip.GzipFile) else ""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cannot be read, truncated or damaged gzip; fetch the file again") from error
    if not head:
        raise UserError(f"{path}: empty (0 bytes); fetch the file again")
    if nifti_kind(head):
        return "nii" + suffix
    if head.startswith(b"NRRD000") and not suffix:
        return "nrrd"
    if re.search(rb"^\s*NDims\s*=", head, re.MULTILINE) and not suffix:
        return "mhd" if path.suffix.lower() == ".mhd" else "mha"
    fault = next((f"{what}, " for magic, what in _FOREIGN.items() if head.lstrip().startswith(magic)), "")
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        fault = "Analyze 7.5, which has no orientation, or a damaged NIfTI, "
    raise UserError(
        f"{path}: cannot be read: {fault}not a NIfTI, MHA, NRRD or DICOM file, or truncated; fetch or convert it again"
    )


def _read_itk(path: Path, kind: str) -> tuple[sitk.Image, list[str]]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if kind == "nrrd" else "MetaImageIO")
    with path.open("rb") as file:
        head = file.read(65536)
    head = head.split(b"\n\n")[0] if kind == "nrrd" else head.split(b"ElementDataFile")[0]
    # ITK's arrays hold 10 axes: more, or fewer than 0, crash the process.
    if not all(re.match(rb"0*([0-9]|10)(\D|$)", axes) for axes in re.findall(_AXES, head, re.MULTILINE)):
        raise UserError(f"{path}: NDims in its header is damaged; fetch or convert it again")
    if scaled := re.search(_SCALED, head, re.MULTILINE | re.IGNORECASE):
        raise UserError(f"{path}: {scaled[0].decode('latin-1').strip()}, which is not read; convert it to HU and mm")
    data = _data_file(path, kind)
    oriented = re.search(_ORIENTED["nrrd" if kind == "nrrd" else "mha"], head, re.MULTILINE | re.IGNORECASE)
    try:
        with quiet_stderr(), _in_utf8(path, data) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
            # The header alone decides how much memory ITK takes, so it is held against the file first.
            count = math.prod(reader.GetSize()) * max(reader.GetNumberOfComponents(), 1)
            if count <= min(MAX_VOXELS, MAX_DEFLATE * data.stat().st_size):
                return reader.Execute(), [] if oriented else [f"{path}: {NO_ORIENTATION}"]
    except RuntimeError as error:
        fault = next((what for word, what in _ITK.items() if word in str(error).lower()), "truncated or damaged")
        raise UserError(f"{path}: cannot be read, {fault}; fetch or convert it again") from error
    raise UserError(f"{path}: {reader.GetSize()} voxels, more than the file can hold: truncated; fetch the file again")


@contextlib.contextmanager
def _in_utf8(path: Path, data: Path) -> Iterator[str]:
    """The name of a header, beside its voxels' file ``data``, for ITK, which takes UTF-8 alone: else a link's name."""
    try:
        str(path).encode()
        yield str(path)
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            header, voxels = Path(folder, f"image{path.suffix}"), Path(folder, data.relative_to(path.parent))
            header.symlink_to(path.absolute())
            if data != path:
                voxels.parent.mkdir(parents=True, exist_ok=True)
                voxels.symlink_to(data.absolute())
            yield str(header)


def _data_file(path: Path, kind: str) -> Path:
    """The file with the voxels: ``path`` itself, or the one beside it that a header names; UserError for any other."""
    with path.open("rb") as file:
        head = file.read(65536)
    key = rb"^data ?file:\s*(.*)$" if kind == "nrrd" else rb"^\s*ElementDataFile\s*=\s*(.*)$"
    found = re.search(key, head.split(b"\n\n")[0] if kind == "nrrd" else head, re.MULTILINE | re.IGNORECASE)
    name = found[1].strip().decode("utf-8", errors="replace") if found else "LOCAL"
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise UserError(f"{path}: voxels in many files ({name}); convert it to one .mha or .nii.gz")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{path}: voxels in {name}, outside its folder; put them beside the header")
    data = path.parent / name
    if not data.is_file():
        raise UserError(f"{path}: its voxels' file {name} is missing; put it beside the header")
    return data


def _check_geometry(image: sitk.Image, path: Path) -> None:
    spacing, origin = np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3])
    direction = np.array(image.GetDirection())
    if not (np.isfinite(direction).all() and np.isfinite(spacing).all() and np.abs(origin).max() < 1e6):
        raise UserError(f"{path}: spacing, origin or direction are not finite; convert it again")
    if spacing.min() < _SPACINGS[0] or spacing.max() > _SPACINGS[1]:
        sides = " x ".join(f"{s:g}" for s in spacing)
        raise UserError(f"{path}: voxels of {sides} mm; is the unit wrong? write the spacing in mm")
    extent = (spacing * image.GetSize()[:3]).max()
    if extent > _MAX_EXTENT:
        raise UserError(f"{path}: {extent / 1000:.0f} m long; is the unit wrong? write the spacing in mm")
