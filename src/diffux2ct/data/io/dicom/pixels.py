"""Pixels of DICOM frames in HU: decoding of every transfer syntax that has a codec, rescale, padding."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from jaxtyping import Num
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from diffux2ct.data.io.dicom.frames import Frame, plain_text, quiet_pydicom
from diffux2ct.data.io.hu import AIR
from diffux2ct.data.io.image_file import quiet_stderr
from diffux2ct.errors import UserError

_MAX_SIDE = 8192  # pixels: beyond any CT matrix; a damaged header must not ask for gigabytes
_TISSUE = (-1000.0, 3071.0)  # HU: values in here are padding only where they fill the corners of the slice
# Transfer syntaxes that GDCM, inside SimpleITK, decodes: JPEG (8 and 12 bit, lossless), JPEG-LS, JPEG 2000, RLE.
_GDCM = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)} | {"1.2.840.10008.1.2.5"}
_PLAIN = (str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian), str(ExplicitVRBigEndian))
_DESCRIPTION = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")


def read_planes(frames: Sequence[Frame]) -> Num[np.ndarray, "D H W"]:
    """HU of frames in their order: int16 (or int32) where slopes and intercepts are whole numbers, else floats.

    Each frame has its own rescale. Pixels that hold the file's padding value become -1024 HU. Raises UserError, naming
    the file: no codec for its compression, truncated, no HU.
    """
    planes: list[np.ndarray] = []
    opened: tuple[Path, pydicom.Dataset] | None = None
    for frame in frames:
        if opened is None or opened[0] != frame.file:  # the frames of an enhanced file follow each other
            opened = (frame.file, open_file(frame.file))
        planes.append(_to_hu(decode(opened[1], frame.file, frame.shape, frame.index or 0), opened[1], frame))
    return np.stack(planes)


def open_file(file: Path) -> pydicom.Dataset:
    """The whole file, its pixels not decoded; UserError if it is damaged."""
    with quiet_pydicom():
        try:
            dataset = pydicom.dcmread(file, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:
                # A file without preamble: pydicom has guessed its encoding.
                implicit = dataset.original_encoding[0]
                guess = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
                dataset.file_meta.TransferSyntaxUID = guess
            return dataset
        except Exception as error:
            raise UserError(f"{file}: damaged, or not DICOM; fetch the file again") from error


def decode(dataset: pydicom.Dataset, file: Path, shape: tuple[int, int], index: int = 0) -> np.ndarray:
    """Stored values of one frame of ``file``, [rows, cols] of a whole-number type, as no display changes them."""
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if min(shape) < 1 or max(shape) > _MAX_SIDE:
        raise UserError(f"{file}: {shape[0]} x {shape[1]} pixels are no image of a scanner; fetch the file again")
    bits, high = (dataset.get(keyword) for keyword in ("BitsStored", "HighBit"))
    if isinstance(bits, int) and isinstance(high, int) and high != bits - 1:
        raise UserError(f"{file}: values in bits {high + 1 - bits} to {high} of a pixel; convert it with dcmconv")
    with quiet_pydicom():
        try:
            stored = pixel_array(dataset, index=index, raw=True)
        except Exception as error:
            if str(syntax) in _PLAIN:
                raise UserError(f"{file}: the pixels are truncated or damaged; fetch the file again") from error
            stored = _decode_with_gdcm(dataset, file, index, syntax)
    if stored.shape != shape or stored.dtype.kind not in "iu":
        raise UserError(f"{file}: the pixels do not fit the header; fetch the file again")
    return stored


def _decode_with_gdcm(dataset: pydicom.Dataset, path: Path, index: int, syntax: UID) -> np.ndarray:
    """One compressed frame through SimpleITK, as a small file of its own: GDCM has lossless JPEG and JPEG-LS.

    On an enhanced file GDCM would take the first frame's rescale for all, and it inverts MONOCHROME1 for display; the
    small file has neither.
    """
    if str(syntax) not in _GDCM:
        raise UserError(f"{path}: no codec for {plain_text(syntax.name)}; convert it with gdcmconv --raw or dcmdjpeg")
    try:
        parts = generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
        data = next(part for i, part in enumerate(parts) if i == index)
        small = pydicom.Dataset()
        small.file_meta = FileMetaDataset()
        small.file_meta.TransferSyntaxUID = syntax
        small.SOPClassUID = small.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        small.SOPInstanceUID = small.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
        small.PhotometricInterpretation = "MONOCHROME2"
        for keyword in _DESCRIPTION:
            if keyword in dataset:
                setattr(small, keyword, dataset[keyword].value)
        small.PixelData = encapsulate([data])
        small["PixelData"].VR = "OB"
        with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
            small.save_as(file, enforce_file_format=True)
            file.flush()
            with quiet_stderr():
                image = sitk.ReadImage(file.name, imageIO="GDCMImageIO")
        return np.squeeze(sitk.GetArrayFromImage(image), axis=0)
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: {syntax.name} cannot be decoded; fetch the file again, or convert it with gdcmconv --raw"
        ) from error


def _to_hu(stored: np.ndarray, dataset: pydicom.Dataset, frame: Frame) -> np.ndarray:
    slope, intercept = frame.rescale or (1.0, 0.0)
    if slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2**14:
        # 16 bits times 14 bits fit into 32; wider pixels are no CT's, but may stand in a damaged header.
        wide = np.int32 if stored.dtype.itemsize <= 2 else np.int64
        hu = stored.astype(wide) * wide(slope) + wide(intercept)
        narrow = np.int16 if hu.min() >= -(2**15) and hu.max() < 2**15 else np.int32
        hu = np.clip(hu, -(2**31), 2**31 - 1).astype(narrow) if wide is np.int64 else hu.astype(narrow)
    else:
        hu = (stored * slope + intercept).astype(np.float32)
    padded = padding(stored, dataset)
    if padded is None:
        return hu
    # Some scanners name as padding a value that is also tissue (0 with intercept 0 is water). True padding lies
    # outside the round field of view, so it fills the corners.
    in_tissue = _TISSUE[0] < hu[padded].mean() < _TISSUE[1] if padded.any() else False
    if not in_tissue or padded[[0, 0, -1, -1], [0, -1, 0, -1]].all():
        hu[padded] = AIR
    return hu


def padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Pixels that the file declares as padding (PixelPaddingValue, PixelPaddingRangeLimit); None: no declaration."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    try:
        limits = [dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")]
        bits = 8 * stored.dtype.itemsize
        # The value is often stored as unsigned where the pixels are signed: the same bits.
        known = [np.array(int(v) % 2**bits, f"u{bits // 8}").view(stored.dtype) for v in limits if v is not None]
    except (TypeError, ValueError):
        return None
    return (stored >= min(known)) & (stored <= max(known))
