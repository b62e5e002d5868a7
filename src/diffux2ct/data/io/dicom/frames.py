"""Place, size and rescale of each image of a DICOM file. Headers only, no pixels."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from diffux2ct.data.io.dicom.kind import has_dicom_magic
from diffux2ct.errors import UserError

# Functional groups of an enhanced CT, and the attributes of a single-frame file that each of them replaces.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTImageFrameTypeSequence": ("FrameType",),
    "FrameContentSequence": ("FrameAcquisitionNumber", "TemporalPositionIndex", "StackID"),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
}
# Frames that differ in one of these are of two acquisitions or phases, or reconstructed twice.
_PHASE = (
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "StackID",
    "ConvolutionKernel",
)
# Frames that differ in one of these are of two scans, even where one ends as the other begins.
_OWNER = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientBirthDate")
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "Modality",
    "PatientID",
    "SeriesDescription",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "GantryDetectorTilt",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *_PHASE,
    *_OWNER,
    *(keyword for keywords in _GROUPS.values() for keyword in keywords),
]
_MAX_FRAMES = 20_000
_NOT_AXIAL = ("LOCALIZER", "SCREEN SAVE", "PROTOCOL")  # values of ImageType that mark a scout or a picture


@dataclass(frozen=True)
class SeriesInfo:
    """One series of a patient.

    uid: SeriesInstanceUID. num_slices: files, or frames of enhanced ones; localizers and screen pictures do not count.
    patient: PatientID; an anonymiser may have given one uid to the series of several patients.
    """

    uid: str
    modality: str
    num_slices: int
    description: str
    patient: str


@dataclass(frozen=True)
class Frame:
    """One image of a series: a single-frame file, or frame ``index`` of an enhanced one.

    uid: SOPInstanceUID. order: by InstanceNumber. acquisition: its number, then the values of _PHASE. owner: those of
    _OWNER.
    position: centre of its first pixel, mm LPS (x, y, z); axes: unit vectors along a row and along a column [2, 3];
    pixel_spacing: mm along a row and along a column (x, y); NaN where the file does not declare them.
    rescale: (slope, intercept). is_axial: not a localizer nor a picture with colours.
    """

    file: Path
    index: int | None
    uid: str
    order: int
    acquisition: tuple[str, ...]
    owner: tuple[str, ...]
    shape: tuple[int, int]
    is_axial: bool
    position: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "2 3"]
    pixel_spacing: tuple[float, float]
    thickness: float
    rescale: tuple[float, float] | None
    rescale_type: str
    gantry_tilt: float

    @property
    def is_placed(self) -> bool:
        """True if the file declares the image's place and size."""
        return bool(np.isfinite([*self.position, *self.axes.ravel(), *self.pixel_spacing]).all())


def read_header(path: Path) -> tuple[SeriesInfo, pydicom.Dataset]:
    """The series of a file, and the attributes that ``frames_of`` needs; UserError if it is damaged or no image."""
    with quiet_pydicom():
        try:
            _refuse_deflated(path)
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)
            if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                raise UserError(f"{path}: an index (DICOMDIR), no image; give the folder that holds the slices")
            modality = plain_text(header.get("Modality"))
            if header.get("SOPClassUID") is None and not modality:
                raise ValueError("neither SOP class nor modality")
            count = max(int(header.get("NumberOfFrames") or 1), 1) if _is_axial(header.get("ImageType")) else 0
            keys = ("SeriesInstanceUID", "SeriesDescription", "PatientID")
            uid, description, patient = (plain_text(header.get(key)) for key in keys)
        except UserError:
            raise
        except Exception as error:  # pydicom raises whatever a damaged byte leads to
            raise UserError(f"{path}: damaged, or not DICOM; fetch the file again") from error
    return SeriesInfo(uid, modality or "unknown", count, description, patient), header


def frames_of(path: Path, header: pydicom.Dataset) -> list[Frame]:
    """The images of one file. UserError if an attribute that places or scales them cannot be read."""
    with quiet_pydicom():
        try:
            count = int(header.get("NumberOfFrames") or 1)
            per_frame = header.get("PerFrameFunctionalGroupsSequence")
            if count <= 1 and not per_frame:
                return [_frame(path, None, _plain(header))]
            if not per_frame:
                raise UserError(f"{path}: {count} frames without positions; export the scan as a CT series")
            if count > _MAX_FRAMES or len(per_frame) != count:
                raise UserError(f"{path}: {count} frames, but {len(per_frame)} are described; fetch the file again")
            shared = _group(header.get("SharedFunctionalGroupsSequence"))
            base = _plain(header) | shared
            return [_frame(path, i, base | _group([item])) for i, item in enumerate(per_frame)]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path}: the header is damaged; fetch the file again") from error


def _refuse_deflated(path: Path) -> None:
    """UserError for a deflated file: pydicom would unpack it whole, however large, to read one attribute."""
    if not has_dicom_magic(path):
        return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UserError(f"{path}: a deflated transfer syntax; convert it with gdcmconv --raw or dcmconv +te")


def plain_text(value: Any) -> str:
    """A header's value as one printable line of at most 80 characters; "" for None."""
    text = "" if value is None else str(value).strip()
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without pydicom's remarks on odd values: what matters is said in a UserError or a note."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _plain(header: pydicom.Dataset) -> dict[str, Any]:
    return {element.keyword: element.value for element in header if element.VR != "SQ" or element.value}


def _group(items: Any) -> dict[str, Any]:
    """The attributes of a functional-groups item, named as in a single-frame file."""
    found: dict[str, Any] = {}
    for group, keywords in _GROUPS.items():
        for item in (items[0].get(group) if items else None) or []:
            found |= {keyword: item.get(keyword) for keyword in keywords if item.get(keyword) is not None}
    return found


def _frame(path: Path, index: int | None, tags: dict[str, Any]) -> Frame:
    spacing = _numbers(tags.get("PixelSpacing"), 2)
    orientation = _numbers(tags.get("ImageOrientationPatient"), 6)
    slope, intercept = tags.get("RescaleSlope"), tags.get("RescaleIntercept")
    if "ModalityLUTSequence" in tags:
        raise UserError(f"{path}: HU by a look-up table (ModalityLUTSequence); export it with a rescale slope")
    number = tags.get("FrameAcquisitionNumber", tags.get("AcquisitionNumber"))
    one_value = int(tags.get("SamplesPerPixel") or 1) == 1 and tags.get("PhotometricInterpretation") != "PALETTE COLOR"
    return Frame(
        file=path,
        index=index,
        uid=str(tags.get("SOPInstanceUID") or ""),
        order=int(tags.get("InstanceNumber") or 0) * _MAX_FRAMES + (index or 0),
        acquisition=tuple("" if v is None else plain_text(v) for v in (number, *map(tags.get, _PHASE))),
        owner=tuple(plain_text(tags.get(keyword)) for keyword in _OWNER),
        shape=(int(tags.get("Rows") or 0), int(tags.get("Columns") or 0)),
        is_axial=one_value and _is_axial(tags.get("ImageType")) and _is_axial(tags.get("FrameType")),
        position=_numbers(tags.get("ImagePositionPatient"), 3),
        axes=orientation.reshape(2, 3),
        pixel_spacing=(float(spacing[1]), float(spacing[0])),
        thickness=float(tags.get("SliceThickness") or 0.0),
        rescale=None if slope is None and intercept is None else _rescale(path, slope, intercept),
        rescale_type=plain_text(tags.get("RescaleType")).upper(),
        gantry_tilt=float(tags.get("GantryDetectorTilt") or 0.0),
    )


def _is_axial(image_type: Any) -> bool:
    return not {str(word).upper() for word in _list(image_type)} & set(_NOT_AXIAL)


def _rescale(path: Path, slope: Any, intercept: Any) -> tuple[float, float]:
    pair = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    if not np.isfinite(pair).all() or pair[0] == 0.0:
        raise UserError(f"{path}: RescaleSlope {pair[0]:g}, RescaleIntercept {pair[1]:g}; export the scan again")
    return pair


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]


def _numbers(value: Any, count: int) -> np.ndarray:
    """``count`` finite numbers; NaN where there are others."""
    numbers = np.array([float(v) for v in _list(value) if v is not None], dtype=float)
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else np.full(count, np.nan)
