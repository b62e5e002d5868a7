"""Writes DICOM CT series for tests, as scanners do and as they should not: one place for all odd headers."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from diffux2ct.data.io.dicom.frames import SeriesInfo, read_header
from diffux2ct.data.io.dicom.kind import is_dicom
from diffux2ct.data.io.dicom.series import series_of
from diffux2ct.data.io.volume import read_ct
from diffux2ct.errors import UserError

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PIXEL = (0.8, 0.9)  # mm along x and y


def hu_volume(shape: tuple[int, ...] = (6, 12, 10), seed: int = 0) -> np.ndarray:
    """Noise in the range of HU, so that every voxel's place can be told."""
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def slice_dataset(
    stored: np.ndarray,
    *,
    uid: str = "1.2.10",
    number: int = 0,
    position: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: Sequence[float] = UPRIGHT,
    slope: float | None = 1,
    intercept: float | None = -1024,
    modality: str = "CT",
    syntax: str = ExplicitVRLittleEndian,
    **tags: object,
) -> Dataset:
    """One CT slice of stored values (uint16, int16, uint8, ...) [rows, cols]; ``tags`` by keyword, None deletes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{number + 1}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = modality
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, "1.2.3"
    dataset.InstanceNumber = number + 1
    dataset.ImagePositionPatient = [round(float(v), 6) for v in position]
    dataset.ImageOrientationPatient = [round(float(v), 8) for v in orientation]
    dataset.PixelSpacing = [PIXEL[1], PIXEL[0]]
    if slope is not None:
        dataset.RescaleSlope = slope
    if intercept is not None:
        dataset.RescaleIntercept = intercept
    set_pixels(dataset, stored)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    """Pixel data and its description; the last two axes are rows and columns."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    dataset.PixelData = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("><"[not big])).tobytes()


def write_series(
    folder: Path,
    hu: np.ndarray,
    *,
    uid: str = "1.2.10",
    along: Sequence[float] | None = None,
    orientation: Sequence[float] = UPRIGHT,
    move: Sequence[float] = (0.0, 0.0, 1.0),
    change: Callable[[int, Dataset], None] | None = None,
    **tags: object,
) -> list[Path]:
    """A series of slices at distances ``along`` (mm, default 2.5 apart) in direction ``move``; HU + 1024 stored.

    change(i, dataset) may alter each slice. Files are named in reverse, so that the order cannot come from names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    along = [2.5 * i for i in range(len(hu))] if along is None else along
    paths = []
    for i, (plane, distance) in enumerate(zip(hu, along, strict=True)):
        position = np.array([-10.0, -20.0, 30.0]) + distance * np.asarray(move)
        stored = (plane + np.int16(1024)).astype(np.uint16)
        dataset = slice_dataset(stored, uid=uid, number=i, position=position, orientation=orientation, **tags)
        if change is not None:
            change(i, dataset)
        paths.append(folder / f"{uid}_{len(hu) - i:03d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def compress(dataset: Dataset, compressor: str) -> None:
    """Replace the pixels by RLE, or by what GDCM's compressors JPEG (lossless), JPEGLS and JPEG2000 make of them."""
    if compressor == "RLE":
        dataset.compress(RLELossless)
        return
    stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData, syntax = _gdcm(stored, compressor)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax


def _gdcm(stored: np.ndarray, compressor: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.dcm")
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(sitk.GetImageFromArray(stored[None]))
        written = pydicom.dcmread(path)
    return written.PixelData, str(written.file_meta.TransferSyntaxUID)


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    positions: Sequence[Sequence[float]],
    *,
    rescales: Sequence[tuple[float, float]] | None = None,
    orientation: Sequence[float] = UPRIGHT,
    localizer: int | None = None,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """An enhanced multi-frame CT; frames as ordered in ``stored`` [frames, rows, cols], rescale shared or per frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = slice_dataset(stored[0], uid="1.2.20")
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    set_pixels(dataset, stored)
    dataset.NumberOfFrames = len(stored)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[float(v) for v in orientation])]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[PIXEL[1], PIXEL[0]], SliceThickness=2.5)]
    if rescales is None:
        shared.PixelValueTransformationSequence = [_rescale(1, -1024)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    items = []
    for i, position in enumerate(positions):
        item = Dataset()
        item.PlanePositionSequence = [_item(ImagePositionPatient=[round(float(v), 5) for v in position])]
        if rescales is not None:
            item.PixelValueTransformationSequence = [_rescale(*rescales[i])]
        kind = "LOCALIZER" if i == localizer else "AXIAL"
        item.CTImageFrameTypeSequence = [_item(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"])]
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = items
    if change is not None:
        change(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _item(**tags: object) -> Dataset:
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return item


def _rescale(slope: float, intercept: float) -> Dataset:
    return _item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")


def list_series(folder: Path) -> list[SeriesInfo]:
    """The series whose files lie in a folder, longest first."""
    return series_of(read_header(path)[0] for path in sorted(folder.iterdir()) if is_dicom(path))


def refused(path: Path, match: str) -> str:
    """The one line by which ``read_ct`` refuses ``path``."""
    with pytest.raises(UserError, match=match) as caught:
        read_ct(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)
