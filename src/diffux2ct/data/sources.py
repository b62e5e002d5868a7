"""Find the CT scans in a raw folder: any folder, and the public data sets' own layouts.

A source answers one question: which files are scans, of which patients, and with which labels. What is in the files
is settled by ``volume_io``.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from diffux2ct.errors import UserError

_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
_LABEL = re.compile(r"\d*(labels?|masks?|segs?|segmentations?)(maps?)?(tr|ts)?\d*")
_NEUTRAL = {
    "ct",
    "data",
    "image",
    "images",
    "img",
    "volume",
    "vol",
    "scan",
}  # tokens that tell no scans apart
_LIDC = re.compile(r"LIDC-IDRI-\d{4}")


@dataclass(frozen=True)
class RawCase:
    """One scan: its patient, the file or DICOM folder, and its label file if there is one."""

    patient: str
    path: Path
    labels: Path | None = None


def discover(name: str, raw: str | Path) -> list[RawCase]:
    """Scans under ``raw`` by the layout ``name`` (folder, lidc_idri, ctspine1k, ctpelvic1k, lumbarv), sorted.

    Raises UserError for an unknown layout, a missing folder, or one that holds no scan.
    """
    if name not in SOURCES:
        raise UserError(f"dataset.prepare.source={name}: choose one of {', '.join(sorted(SOURCES))}")
    raw = Path(raw)
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; raw= is the folder that holds the CT scans")
    cases = sorted(SOURCES[name](raw), key=lambda case: (case.patient, str(case.path)))
    if not cases:
        kinds = "a DICOM series, .nii, .nii.gz, .mha, .mhd or .nrrd"
        raise UserError(f"{raw}: no CT scan found for source {name} ({kinds}); check raw=")
    return cases


def find_folder(raw: Path) -> list[RawCase]:
    """Any folder, recursively: every volume file and every folder of DICOM slices is a scan.

    The patient is the file's stem, or its parent folder where stems repeat (``P1/ct.nii.gz``, ``P2/ct.nii.gz``).
    Files and folders with a word label, mask or seg in their names are labels; they go to the scan of the same name.
    For DICOM the patient is the first folder in which the paths of the series differ.
    """
    files, series = _scan(raw)
    labels: dict[str, list[Path]] = {}
    for path in files:
        if _is_label(path.relative_to(raw)):
            labels.setdefault(_key(path), []).append(path)
    scans = [path for path in files if not _is_label(path.relative_to(raw))]
    stems = Counter(_stem(path) for path in scans)
    cases = []
    for path in scans:
        patient = _stem(path) if stems[_stem(path)] == 1 or path.parent == raw else path.parent.name
        found = labels.get(_key(path), [])
        # Where names repeat (P1/ct, P1/label, P2/ct, ...), a label belongs to the scan beside it.
        found = [label for label in found if label.parent == path.parent] or found
        cases.append(RawCase(patient, path, found[0] if len(found) == 1 else None))
    common = Path(os.path.commonpath(series)) if series else raw
    for folder in series:
        patient = folder.relative_to(common).parts[0] if folder != common else folder.resolve().name
        cases.append(RawCase(patient, folder))
    return cases


def find_lidc_idri(raw: Path) -> list[RawCase]:
    """LIDC-IDRI: patient folders ``LIDC-IDRI-xxxx`` with DICOM below (the largest series), or files so named."""
    files, series = _scan(raw)
    by_patient: dict[str, list[Path]] = {}
    for path in [*(p for p in files if not _is_label(p.relative_to(raw))), *series]:
        match = _LIDC.search(str(path.relative_to(raw))) or _LIDC.search(raw.name)
        if match:
            by_patient.setdefault(match[0], []).append(path)
    # A patient folder also holds chest radiographs (CR, DX): short series, so the longest is the CT.
    return [RawCase(patient, max(paths, key=_num_slices)) for patient, paths in by_patient.items()]


def _find_labelled(raw: Path) -> list[RawCase]:
    """CTSpine1K, CTPelvic1K, LumbarV: volume files with labels named alike, at any depth; one scan a patient."""
    return find_folder(raw)


SOURCES: dict[str, Callable[[Path], list[RawCase]]] = {
    "folder": find_folder,
    "lidc_idri": find_lidc_idri,
    "ctspine1k": _find_labelled,
    "ctpelvic1k": _find_labelled,
    "lumbarv": _find_labelled,
}


def _scan(raw: Path) -> tuple[list[Path], list[Path]]:
    """Volume files, and folders that hold DICOM slices, under ``raw`` (hidden names left out), sorted."""
    files, series = [], []
    for where, folders, names in os.walk(raw, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in names if not name.startswith("."))
        volumes = [Path(where, name) for name in names if name.lower().endswith(_SUFFIXES)]
        files += volumes
        if _has_dicom(Path(where, name) for name in names if not name.lower().endswith(_SUFFIXES)):
            series.append(Path(where))
    return files, series


def _has_dicom(paths: Iterable[Path]) -> bool:
    """Whether one of the first files is DICOM; a folder of slices need not be read through."""
    for count, path in enumerate(paths):
        if count == 20:
            return False
        try:
            with path.open("rb") as file:
                head = file.read(132)
        except OSError:
            continue
        if head[128:] == b"DICM":
            return True
    return False


def _num_slices(path: Path) -> int:
    return sum(1 for _ in path.iterdir()) if path.is_dir() else 1


def _stem(path: Path) -> str:
    name = path.name
    suffix = next(s for s in _SUFFIXES if name.lower().endswith(s))
    return name[: -len(suffix)]


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[_\-. ]+", text.lower()) if word]


def _is_label(path: Path) -> bool:
    """By whole words, so that ``totalseg_s0308_ct`` is a scan and ``s0308_seg`` is not; folders ``labelsTr`` count."""
    return any(_LABEL.fullmatch(word) for part in (*path.parent.parts, _stem(path)) for word in _words(part))


def _key(path: Path) -> str:
    """What a scan's name and its label's name have in common."""
    words = _words(_stem(path))
    return "_".join(word for word in words if word not in _NEUTRAL and not _LABEL.fullmatch(word))
