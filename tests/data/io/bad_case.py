"""What a case of the corpus of bad inputs is, and good files for the cases to spoil.

``outcome`` is a regular expression of the one line that must be raised, or None where the input must be read.
``handled`` then gives a word of the note that must be in ``meta["notes"]`` ("" for none).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tests.data.io.dicom.dicom_files import hu_volume

SHAPE = (8, 9, 10)  # of the good scan that most cases start from: z, y, x


@dataclass(frozen=True)
class BadInput:
    """One case: ``make(folder)`` writes it into an empty folder and returns what to read."""

    name: str
    make: Callable[[Path], Path]
    outcome: str | None
    handled: str = ""


CASES: list[BadInput] = []


def case(outcome: str | None, handled: str = "") -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append(BadInput(make.__name__.replace("_", " "), make, outcome, handled))
        return make

    return add


def scan() -> np.ndarray:
    return hu_volume(SHAPE)


def write(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 2.0)) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: image.GetDimension()])
    sitk.WriteImage(image, str(path))
    return path


def nifti(path: Path, patch: dict[int, bytes] | None = None) -> Path:
    """A good NIfTI with header bytes changed; an uncompressed .nii."""
    write(path.with_suffix(".nii"), scan())
    data = bytearray(path.with_suffix(".nii").read_bytes())
    for offset, value in (patch or {}).items():
        data[offset : offset + len(value)] = value
    path.with_suffix(".nii").write_bytes(data)
    return path.with_suffix(".nii")


def metaimage(path: Path, changes: dict[str, str | None], data: bytes | None = None) -> Path:
    """A MetaImage with header lines changed (None drops one)."""
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 2",
        "DimSize": "10 9 8",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    } | changes
    text = "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)
    path.write_bytes(text.encode() + (scan().tobytes() if data is None else data))
    return path
