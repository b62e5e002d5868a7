"""A DICOM radiograph (CR, DX, XA, ...) as grey levels: bone bright, turned by what the file declares."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float32
from pydicom.pixels.processing import apply_modality_lut

from diffux2ct.data.io.dicom.frames import plain_text, quiet_pydicom
from diffux2ct.data.io.dicom.pixels import decode, open_file, padding
from diffux2ct.errors import UserError

_MODALITIES = ("CR", "DX", "DR", "RG", "RF", "XA", "RTIMAGE", "OT", "SC")
_VIEWS = {"AP": "frontal", "PA": "frontal", "LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral"}


def read_radiograph(path: Path) -> tuple[Float32[np.ndarray, "rows cols"], bool, dict[str, Any]]:
    """Pixels from 0 up with bone bright, True if the first row shows the head, and metadata.

    Columns run toward the patient's left or toward posterior. The metadata: modality, pitch ((row, col) mm or None),
    view ("frontal", "lateral" or None: not declared) and notes. Windows and VOI LUTs, which are for display, are not
    applied. Raises UserError: not one grey radiograph, or an orientation that is neither frontal nor lateral.
    """
    dataset = open_file(path)
    modality = plain_text(dataset.get("Modality"))
    if "PixelData" not in dataset and not modality:
        raise UserError(f"{path}: cannot be read, truncated or not an image; write it again")
    if modality == "CT":
        raise UserError(
            f"{path}: DICOM of modality CT, not a radiograph; make X-rays of it with scripts/synthesize_drr.py"
        )
    if modality not in _MODALITIES:
        raise UserError(f"{path}: DICOM of modality {modality or 'unknown'}, not a radiograph (CR, DX, ...)")
    try:
        with quiet_pydicom():
            frames, photometric = int(dataset.get("NumberOfFrames") or 1), dataset.get("PhotometricInterpretation")
            if frames > 1:
                raise UserError(f"{path}: {frames} frames; give one radiograph a file")
            if int(dataset.get("SamplesPerPixel") or 1) > 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
                raise UserError(f"{path}: a colour image ({photometric}); a radiograph has one grey value a pixel")
            stored = decode(dataset, path, (int(dataset.Rows), int(dataset.Columns)))
            values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
            notes: list[str] = []
            values *= _polarity(dataset, path, notes)
            pitch = _pitch(dataset.get("ImagerPixelSpacing")) or _pitch(dataset.get("PixelSpacing"))
            aspect = _pitch(dataset.get("PixelAspectRatio"))
            if pitch is None and aspect is not None and abs(aspect[0] / aspect[1] - 1) > 0.02:
                raise UserError(f"{path}: pixels of {aspect[0]:g} x {aspect[1]:g}, not square; resample it first")
            position = plain_text(dataset.get("ViewPosition")).upper()
            view = _VIEWS.get(position)
            directions = [str(word)[:1].upper() for word in dataset.get("PatientOrientation") or []]
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise UserError(f"{path}: the header is damaged; fetch the file again") from error
    pad = padding(stored, dataset)
    lowest = values.min() if pad is None or pad.all() else values[~pad].min()
    values = (values - lowest).clip(0) if pad is None else np.where(pad, 0.0, values - lowest)
    head_first = True
    if position == "RL" and not any(directions):
        notes.append(f"{path}: a right lateral view without PatientOrientation; anterior is taken to be at the left")
    if any(directions):
        values, head_first, turned, seen = _turned(values, directions, path)
        pitch = pitch[::-1] if turned and pitch else pitch
        if view not in (None, seen):
            raise UserError(
                f"{path}: {view} by its ViewPosition, {seen} by its PatientOrientation; correct one, or give a PNG"
            )
        view = seen
    return values.astype(np.float32), head_first, {"modality": modality, "pitch": pitch, "view": view, "notes": notes}


def _polarity(dataset: pydicom.Dataset, path: Path, notes: list[str]) -> int:
    """1 if high values (after the modality's rescale) are bone, -1 if low ones are.

    PixelIntensityRelationshipSign is about the stored values: 1 = low ones are little X-ray, so bone (PS3.3 C.8.11.3).
    Without it, bone is bright as displayed: low values of MONOCHROME1.
    """
    shown_bright = -1 if dataset.PhotometricInterpretation == "MONOCHROME1" else 1
    sign = dataset.get("PixelIntensityRelationshipSign")
    if sign not in (1, -1):
        if dataset.Modality in ("XA", "RF"):
            notes.append(f"{path}: no PixelIntensityRelationshipSign; bone is taken to be bright as displayed")
        return shown_bright
    polarity = -int(sign) * (-1 if float(dataset.get("RescaleSlope") or 1) < 0 else 1)
    if polarity != shown_bright:
        notes.append(f"{path}: displayed with dark bone; inverted by its PixelIntensityRelationshipSign {sign}")
    return polarity


def _turned(values: np.ndarray, directions: list[str], path: Path) -> tuple[np.ndarray, bool, bool, str]:
    """Pixels with columns toward left or posterior; True if the head is first; True if transposed; and the view."""
    along_row, along_column = (*directions, "", "")[:2]
    turned = along_row in ("H", "F")
    if turned:
        values, along_row, along_column = values.T, along_column, along_row
    if along_row not in ("L", "R", "A", "P") or along_column not in ("H", "F"):
        raise UserError(
            f"{path}: PatientOrientation {'/'.join(directions)} is neither a frontal nor a lateral view; "
            "turn the image, or give a PNG"
        )
    if along_row in ("R", "A"):
        values = values[:, ::-1]
    return values, along_column == "F", turned, "frontal" if along_row in ("L", "R") else "lateral"


def _pitch(spacing: Any) -> tuple[float, float] | None:
    """(row, col) mm; None where it is missing or, as in some CR files, zero."""
    try:
        row, col = (float(value) for value in spacing)
    except (TypeError, ValueError):
        return None
    return (row, col) if row > 0 and col > 0 else None
