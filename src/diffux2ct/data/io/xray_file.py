"""Radiographs in: line integrals as numpy arrays, and pictures as PNG, TIFF, JPEG, NIfTI or DICOM.

Whatever the file, an image leaves here as the projector would have made it: rows go with z (row 0 is the most
inferior), columns with x toward the patient's left (frontal) or with y toward posterior (lateral), and bone is bright.
A picture is taken as it is shown to a radiologist: head at the top, the patient's left at the right of a frontal view,
anterior at the left of a lateral one.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped

from diffux2ct.data.io.dicom.kind import has_dicom_magic
from diffux2ct.errors import UserError

_PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_VOLUME_FORMATS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
_DICOM = (".dcm", ".ima", ".dicom")
_GREY = 60.0  # no line integral: that would be 2.7 m of water
_ASPECT_TOLERANCE = 0.02  # a stretch of 2% moves the edge of a 400 mm field by 4 mm


@dataclass(frozen=True)
class XrayImage:
    """A radiograph, float32 [rows, cols]: rows toward superior, columns toward left or posterior, bone bright.

    ``pixel_pitch``: (row, col) mm on the panel, or None where it is unknown. ``is_line_integral``: values are
    integrals of linear attenuation (dimensionless), not grey levels of unknown scale. ``meta``: path, format, and of a
    DICOM file modality, view ("frontal", "lateral", or None: not declared) and notes (lines for the user).
    """

    values: Float32[np.ndarray, "rows cols"]
    pixel_pitch: tuple[float, float] | None
    is_line_integral: bool
    meta: dict[str, Any] = field(default_factory=dict)


def read_xray(path: str | Path, head_up: bool | None = None, view: str | None = None) -> XrayImage:
    """Read a radiograph.

    path: ``.npy`` line integrals (as ``synthesize_drr.py`` writes them), PNG, TIFF or JPEG of one channel, a 2-D or
    one-slice NIfTI, MHA or NRRD, or a DICOM radiograph (CR, DX, ...). Files mean what they say: WhiteIsZero,
    MONOCHROME1, EXIF and TIFF orientation, PatientOrientation and PixelIntensityRelationshipSign are obeyed.
    head_up: True if the first row shows the head; None: in a picture it does, in a ``.npy`` it does not, and other
    formats declare it. view: "frontal" or "lateral". Raises UserError for anything but one grey radiograph, and for a
    file that declares another view.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a radiograph as .npy, PNG, TIFF, NIfTI or DICOM")
    kind, meta = _kind(path), {}
    if kind == "npy":
        values, pitch, first_row_is_head = _read_npy(path), None, False
    elif kind == "volume":
        values, pitch, first_row_is_head = _read_volume_format(path)
    elif kind == "dicom":
        from diffux2ct.data.io.dicom.radiograph import read_radiograph

        values, first_row_is_head, meta = read_radiograph(path)
        pitch = meta.pop("pitch")
        if view is not None and meta["view"] not in (None, view):
            raise UserError(f"{path}: given as {view}, but a {meta['view']} view by its own header; exchange the two")
    else:
        values, pitch, first_row_is_head = _read_picture(path), None, True
    first_row_is_head = first_row_is_head if head_up is None else head_up
    meta = {"path": str(path), "format": kind, **meta}
    return _radiograph(values, pitch, kind == "npy", first_row_is_head, meta)


def xray_from_array(
    values: Shaped[np.ndarray, "..."],
    name: str,
    *,
    line_integrals: bool = True,
    pixel_pitch: tuple[float, float] | None = None,
    head_up: bool = False,
) -> XrayImage:
    """A radiograph that is in memory already, checked as one of a file is.

    values: [rows, cols], integers or floats, bone bright; row 0 is the most inferior one, with ``head_up`` the head's.
    line_integrals: else they are grey levels. pixel_pitch: (row, col) mm. name: of the image, for messages.
    Raises UserError, one line, for whatever is not one grey radiograph.
    """
    _check_numbers(values, name)
    meta = {"path": name, "format": "array"}
    return _radiograph(values, pixel_pitch, line_integrals, head_up, meta)


def _radiograph(
    values: np.ndarray,
    pitch: tuple[float, float] | None,
    is_line_integral: bool,
    first_row_is_head: bool,
    meta: dict[str, Any],
) -> XrayImage:
    """Pixels as an `XrayImage`, row 0 the most inferior one. Raises UserError for what is no radiograph."""
    path = meta["path"]
    _check(values, path)
    values = values.astype(np.float32)
    if is_line_integral and values.min() < -1e-3 * values.max():
        raise UserError(
            f"{path}: values down to {values.min():g}, but line integrals are never negative; is it normalised?"
        )
    if is_line_integral and values.max() > _GREY and (values == np.round(values)).all():
        raise UserError(
            f"{path}: whole numbers up to {values.max():g} are grey levels, but line integrals stay below about 30; "
            "save it as a PNG with the head up"
        )
    if not is_line_integral:
        values -= min(float(values.min()), 0.0)
    if first_row_is_head:
        values = values[::-1]
    return XrayImage(np.ascontiguousarray(values), pitch, is_line_integral, meta)


def fit_xray(image: XrayImage, rows: int, cols: int) -> XrayImage:
    """Resample a radiograph to the model's panel of ``rows`` x ``cols`` pixels.

    Shrinking takes exact area means (the block means of training where the factor is whole), growing interpolates
    linearly. Raises UserError where the shape of the field differs, since that would stretch the patient.
    """
    have_rows, have_cols = image.values.shape
    pitch = image.pixel_pitch or (1.0, 1.0)
    stretch = (have_cols * pitch[1] / cols) / (have_rows * pitch[0] / rows)
    if abs(np.log(stretch)) > _ASPECT_TOLERANCE:
        size = f"{have_cols * pitch[1]:g} x {have_rows * pitch[0]:g} mm" if image.pixel_pitch else "width x height"
        shape = "as wide as high" if cols == rows else f"{cols / rows:.3g} times as wide as high"
        raise UserError(
            f"{image.meta.get('path', 'X-ray')}: {have_cols} x {have_rows} pixels ({size}) would be stretched on the "
            f"model's panel of {cols} x {rows}; crop or pad the image until it is {shape}"
        )
    values = resampling(have_rows, rows) @ image.values.astype(np.float64) @ resampling(have_cols, cols).T
    if image.pixel_pitch is not None:
        pitch = (pitch[0] * have_rows / rows, pitch[1] * have_cols / cols)
        image = replace(image, pixel_pitch=pitch)
    return replace(image, values=values.astype(np.float32))


def _kind(path: Path) -> str:
    name = path.name.lower()
    for kind, suffixes in (("npy", (".npy",)), ("picture", _PICTURES), ("volume", _VOLUME_FORMATS), ("dicom", _DICOM)):
        if name.endswith(suffixes):
            return kind
    if has_dicom_magic(path):
        return "dicom"
    raise UserError(
        f"{path}: of an unknown kind, or not readable; give a radiograph as .npy, PNG, TIFF, NIfTI or DICOM"
    )


def _read_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read, truncated or not a numpy array; write it again") from error
    _check_numbers(values, path)
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    return values


def _read_picture(path: Path) -> np.ndarray:
    """Pixels of a PNG, JPEG or TIFF as a viewer shows them: 0 is black, and the orientation in its tags is obeyed."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            tags, is_tiff = picture.getexif(), picture.format == "TIFF"
            pitch = [float(side) for side in picture.info.get("dpi", (1, 1))]
            orientation, white_is_zero = tags.get(0x0112, 1), is_tiff and tags.get(0x0106) == 0
    except Exception as error:  # Pillow raises whatever a damaged header leads to
        raise UserError(f"{path}: cannot be read, truncated or not an image; write it again") from error
    if min(pitch) > 0 and abs(np.log(pitch[0] / pitch[1])) > _ASPECT_TOLERANCE:
        raise UserError(
            f"{path}: {pitch[0]:.3g} x {pitch[1]:.3g} pixels per inch, so that pixels are not square; resample it first"
        )
    if is_tiff and orientation not in (1, 4):  # SimpleITK's reader obeys 4 and makes colours of the others
        raise UserError(f"{path}: turned by its tag Orientation={orientation}; save it upright")
    values = _to_array(_open(path), path)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if white_is_zero:  # a detector's 12 bits do not reach the 16 bits' black
        values = values.max() - values
    return values if is_tiff or values.ndim != 2 else _upright(values, orientation)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned as EXIF's Orientation (1 to 8) has a viewer show them."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def _read_volume_format(path: Path) -> tuple[np.ndarray, tuple[float, float] | None, bool]:
    """Pixels, pitch, and True if the first row shows the head: one slice declares it, a 2-D image is a picture."""
    image = _open(path)
    values, spacing = _to_array(image, path), image.GetSpacing()[::-1]
    if values.ndim == 3 and 1 in values.shape:
        thin = 0 if values.shape[0] == 1 else 1 if values.shape[1] == 1 else 2
        kept = [axis for axis in range(3) if axis != thin]
        return values.squeeze(thin), (spacing[kept[0]], spacing[kept[1]]), thin == 0
    if values.ndim == 3:
        raise UserError(f"{path}: {values.shape[0]} slices, a volume; give one radiograph a file")
    return values, (spacing[-2], spacing[-1]), True


def _open(path: Path) -> Any:
    """A file's SimpleITK image, its axes LPS if it has three."""
    # Reading a prepared folder must work without SimpleITK, so it is imported where a file needs it.
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
        is_volume = image.GetDimension() == 3 and image.GetNumberOfComponentsPerPixel() == 1
        return sitk.DICOMOrient(image, "LPS") if is_volume else image
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be read, truncated or not an image; write it again") from error


def _to_array(image: Any, path: Path) -> np.ndarray:
    import SimpleITK as sitk

    channels = image.GetNumberOfComponentsPerPixel()
    if channels > 1:
        what = {2: "grey with transparency", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")
        raise UserError(
            f"{path}: a colour image ({what}); a radiograph has one grey value a pixel, so convert it to grey"
        )
    return sitk.GetArrayFromImage(image)


def _check_numbers(values: Any, path: str | Path) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise UserError(f"{path}: not an array of numbers; give line integrals [rows, cols]")


def _check(values: Shaped[np.ndarray, "..."], path: str | Path) -> None:
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        raise UserError(f"{path}: a colour image; a radiograph has one grey value a pixel, so convert it to grey")
    if values.ndim != 2 or min(values.shape) < 2:
        raise UserError(f"{path}: an array of shape {values.shape}; a radiograph is [rows, cols], one a file")
    if not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise UserError(f"{path}: {count} pixels are NaN or infinite; mend the file")
    if values.min() == values.max():
        raise UserError(f"{path}: blank, every pixel is {values.min()}; give a radiograph")


def resampling(have: int, want: int) -> Float[np.ndarray, "want have"]:
    """Rows of weights, each summing to 1: area overlap where pixels grow, linear interpolation where they shrink."""
    scale = have / want
    start = np.arange(want)[:, None] * scale
    pixel = np.arange(have)[None]
    if scale >= 1:
        overlap = np.minimum(start + scale, pixel + 1) - np.maximum(start, pixel)
        return np.clip(overlap, 0, None) / scale
    centre = np.clip(start + scale / 2 - 0.5, 0, have - 1)
    return np.clip(1 - np.abs(centre - pixel), 0, None)
