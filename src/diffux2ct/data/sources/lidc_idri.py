"""LIDC-IDRI as TCIA serves it: 1010 patients, 1018 chest CTs, and radiographs of some of them.

Any of the archive's layouts: ``LIDC-IDRI/LIDC-IDRI-0001/<study>/<series>/*.dcm`` with names or UIDs as folders, one
folder a SeriesInstanceUID with ``metadata.csv``, or one volume file a patient.
"""

import re
from collections import Counter
from pathlib import Path

from diffux2ct.data.prepared.tables import read_rows
from diffux2ct.data.sources.common import Discovery, RawCase, Tree, is_label, not_a_ct, probe
from diffux2ct.data.sources.x2ct import x2ct_lists
from diffux2ct.errors import UserError

_PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
_UID_COLUMNS = ("Series UID", "SeriesInstanceUID", "Series Instance UID", "Series ID")
_MIN_SLICES = 10


def find_lidc_idri(tree: Tree) -> Discovery:
    """Every CT series of every patient: eight patients have two scans, which both are used and share the patient.

    Left out with a reason: radiographs (CR, DX), segmentations and reports (SEG, SR), localizers, a series that is
    there twice, and whatever is of no LIDC-IDRI patient. X2CT-GAN's ``train.txt`` and ``test.txt``, if they lie in
    the raw folder, are the official split. A note counts the CT series of ``metadata.csv`` that are not there.
    """
    cases, left_out = [], []
    for path in tree.files:
        patient = _patient(tree, path)
        if is_label(path.relative_to(tree.root)):
            left_out.append((tree.below(path), "labels are not used"))
        elif patient is None:
            left_out.append((tree.below(path), "no name LIDC-IDRI-xxxx in its path"))
        else:
            cases.append(RawCase(patient, path))
    owners: dict[str, Path] = {}
    for folder in tree.dicom:
        found = probe(folder)
        match = _PATIENT.search(found.patient)
        patient = _patient(tree, folder) or (match[0] if match else None)
        reason = not_a_ct(found)
        if reason is None and patient is None:
            reason = "of no patient LIDC-IDRI-xxxx"
        if reason is None and found.modality == "CT" and found.num_files < _MIN_SLICES:
            reason = f"a CT series of {found.num_files} images, too few for a scan"
        if reason is None and found.series_uid in owners:
            reason = f"the same series as {tree.below(owners[found.series_uid])}"
        if reason is not None or patient is None:
            left_out.append((tree.below(folder), reason or ""))
            continue
        if found.series_uid:
            owners[found.series_uid] = folder
        cases.append(RawCase(patient, folder))
    split, notes = x2ct_lists(tree)
    notes = [*notes, *_twice(cases), *_missing(tree, set(owners))]
    return Discovery(cases, left_out, split, notes)


def _patient(tree: Tree, path: Path) -> str | None:
    # The raw folder itself may be one patient's.
    match = _PATIENT.search(tree.below(path)) or _PATIENT.search(tree.root.resolve().name)
    return match[0] if match else None


def _twice(cases: list[RawCase]) -> list[str]:
    counts = Counter(case.patient for case in cases)
    twice = sorted(patient for patient, count in counts.items() if count > 1)
    return [f"{len(twice)} patients have several scans: {', '.join(twice[:10])}"] if twice else []


def _missing(tree: Tree, found: set[str]) -> list[str]:
    """A note on CT series of the archive's table that are missing in the folder: the download was cut short."""
    notes = []
    for path in tree.texts:
        if path.name.lower() != "metadata.csv":
            continue
        try:
            rows = read_rows(path, ())
        except (OSError, UserError) as error:
            notes.append(f"{tree.below(path)}: not used ({error})")
            continue
        column = next((name for name in _UID_COLUMNS if name in rows[0]), None)
        listed = {(row[column] or "").strip() for row in rows if column and row.get("Modality") == "CT"} - {""}
        if missing := sorted(listed - found):
            notes.append(
                f"{tree.below(path)} lists {len(listed)} CT series and {len(missing)} are not here, "
                f"e.g. {missing[0]}; was the download finished?"
            )
    return notes
