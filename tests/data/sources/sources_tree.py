"""Tiny raw folders laid out as the public data sets are released, of real NIfTI and DICOM files."""

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

COLONOG = "1.3.6.1.4.1.9328.50.4"


def write_volume(path: Path, label: bool = False) -> Path:
    """A 4x5x6 NIfTI (or MHA, NRRD): a CT in HU, or a label map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((4, 5, 6), np.uint8 if label else np.int16)
    values[1:3] = 1 if label else -1000
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(path))
    return path


def write_series(
    folder: Path,
    modality: str = "CT",
    num: int = 12,
    patient: str = "X",
    number: int = 1,
    uid: str | None = None,
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    study: str = "1.2.3",
) -> str:
    """A DICOM series of 4x4 slices as files 1-01.dcm, ...; returns its UID."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    for index in range(num):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number}-{index + 1:02d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesInstanceUID, data.SeriesNumber = modality, uid, number
        data.PatientID, data.PatientName, data.ImageType = patient, patient, list(image_type)
        data.StudyInstanceUID = study
        if modality not in ("SR", "SEG"):
            data.Rows = data.Columns = 4
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
            data.SamplesPerPixel, data.PixelRepresentation = 1, 0
            data.PhotometricInterpretation = "MONOCHROME2"
            data.PixelSpacing, data.SliceThickness = [1.0, 1.0], 2.0
            data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * index], [1, 0, 0, 0, 1, 0]
            data.RescaleSlope, data.RescaleIntercept, data.InstanceNumber = 1, -1024, index + 1
            data.PixelData = np.full((4, 4), 24, np.uint16).tobytes()
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    return uid


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path
