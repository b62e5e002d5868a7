"""Any folder of CT scans, in any layout, at any depth."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffux2ct.data.sources.common import (
    DicomFolder,
    Discovery,
    RawCase,
    Tree,
    is_label,
    key,
    not_a_ct,
    probe,
    read_header,
    stem,
)

_ORPHAN = (
    "by its name a label file, of no scan here or of one with several; name a scan ..._ct, and labels as their scan "
    "with _seg"
)


def find_folder(tree: Tree) -> Discovery:
    """Every volume file and every CT series is a scan.

    The patient is the file's stem, or its parent folder where stems repeat (``P1/ct.nii.gz``, ``P2/ct.nii.gz``).
    Files and folders with a word label, mask or seg in their names are labels; they go to the scan of the same name.
    For DICOM the patient is the PatientID in the headers. Where there is none, or where an anonymiser gave one to all,
    it is the first folder in which the paths of the series differ.
    """
    cases, left_out = _volumes(tree)
    series, others, notes = _series(tree)
    hdf5 = [(tree.below(path), "HDF5; X2CT-GAN's files are read by dataset.prepare.source=x2ct") for path in tree.hdf5]
    return Discovery([*cases, *series], [*left_out, *others, *hdf5], notes=notes)


def find_lumbarv(tree: Tree) -> Discovery:
    """LumbarV, the paper's private lumbar spines: its layout was never published, so it is read as any folder."""
    return find_folder(tree)


def _volumes(tree: Tree) -> tuple[list[RawCase], list[tuple[str, str]]]:
    labels: dict[str, list[Path]] = {}
    scans: list[Path] = []
    for path in tree.files:
        if is_label(path.relative_to(tree.root)):
            labels.setdefault(key(path), []).append(path)
        else:
            scans.append(path)
    stems = Counter(stem(path) for path in scans)
    cases, used = [], set()
    for path in scans:
        patient = stem(path) if stems[stem(path)] == 1 or path.parent == tree.root else path.parent.name
        found = labels.get(key(path), [])
        # Where names repeat (P1/ct, P1/label, P2/ct, ...), a label belongs to the scan beside it, and to no other.
        beside = [label for label in found if label.parent == path.parent]
        found = beside if beside or stems[stem(path)] > 1 else found
        used |= set(found) if len(found) == 1 else set()
        cases.append(RawCase(patient, path, found[0] if len(found) == 1 else None))
    left_out = [(tree.below(path), _ORPHAN) for found in labels.values() for path in found if path not in used]
    return cases, left_out


def _series(tree: Tree) -> tuple[list[RawCase], list[tuple[str, str]], list[str]]:
    cases: list[RawCase] = []
    left_out = []
    common = Path(os.path.commonpath(tree.dicom)) if tree.dicom else tree.root
    parts: dict[tuple[str, str], list[RawCase]] = {}  # by series and PatientID
    for folder in tree.dicom:
        patient = folder.relative_to(common).parts[0] if folder != common else folder.resolve().name
        found = probe(folder)
        if found.mixed:
            mixed, others = _mixed_series(found, patient, tree)
            left_out += others
        elif reason := not_a_ct(found):
            left_out.append((tree.below(folder), reason))
            continue
        else:
            mixed = [(found.series_uid, RawCase(patient, folder, patient_id=found.patient, study=found.study))]
        for uid, case in mixed:
            parts.setdefault((uid, case.patient_id or ""), []).append(case)
    joined_notes: list[str] = []
    for (uid, _), own in parts.items():
        cases += _joined(uid, own, tree, joined_notes)
    cases, notes = _by_patient_id([(case, case.patient_id or "") for case in cases], tree)
    cases = _by_study(cases, notes)
    return cases, left_out, [*joined_notes, *notes]


def _joined(uid: str, parts: list[RawCase], tree: Tree, notes: list[str]) -> list[RawCase]:
    """One scan of the parts of a series that lie in several folders; the parts where they are scans of their own."""
    if len(parts) == 1 or not uid:
        return parts
    from diffux2ct.data.io.dicom.series import is_one_series

    folders = tuple(part.path for part in parts)
    names = ", ".join(tree.below(folder) for folder in folders[:5]) + (", ..." if len(folders) > 5 else "")
    if not is_one_series(folders, uid, parts[0].patient_id or ""):
        notes.append(f"series {uid} is in {len(folders)} folders as often, taken for so many scans: {names}")
        return parts
    notes.append(f"series {uid} is spread over {len(folders)} folders, which are taken together: {names}")
    return [replace(parts[0], path=Path(os.path.commonpath(folders)), series_uid=uid, folders=folders)]


def _mixed_series(
    found: DicomFolder, patient: str, tree: Tree
) -> tuple[list[tuple[str, RawCase]], list[tuple[str, str]]]:
    """A scan, with its series, for each CT series of a patient in a folder that holds several; reads all headers."""
    counts: dict[tuple[str, str, str], int] = {}
    studies: dict[str, str] = {}
    for path in sorted(found.path.iterdir()):
        if path.is_file() and (header := read_header(path)).keys() & {"SeriesInstanceUID", "Modality"}:
            series = (header.get("SeriesInstanceUID", ""), header.get("Modality", ""), header.get("PatientID", ""))
            # Each file is judged by itself: a scout may have the series of its slices.
            slices = 0 if "LOCALIZER" in header.get("ImageType", "").upper() else _frames(header)
            counts[series] = counts.get(series, 0) + slices
            studies[series[0]] = header.get("StudyInstanceUID", "")
    cases, left_out = [], []
    for (uid, modality, patient_id), count in counts.items():
        where = f"{tree.below(found.path)} series {uid}"
        if modality != "CT":
            left_out.append((where, f"DICOM of modality {modality or 'unknown'}, not CT"))
        elif count < 2:
            left_out.append((where, "a localizer (scout) or a single slice, not a CT volume"))
        else:
            cases.append((uid, RawCase(patient, found.path, series_uid=uid, patient_id=patient_id, study=studies[uid])))
    return cases, left_out


def _frames(header: dict[str, str]) -> int:
    number = header.get("NumberOfFrames", "")
    return int(number) if number.isdecimal() else 1


def _by_study(cases: list[RawCase], notes: list[str]) -> list[RawCase]:
    """Scans of one study are of one patient, whatever their folders are called; a note where that joins some.

    A study of several PatientIDs, and one that all scans have, is no evidence: an anonymiser gave it.
    """
    studies = {case.study for case in cases} - {""}
    owners: dict[str, str] = {}
    for study in sorted(studies) if len(studies) > 1 else ():
        own = [case for case in cases if case.study == study]
        names, ids = {case.patient for case in own}, {case.patient_id for case in own} - {"", None}
        names = {owners.get(name, name) for name in names}
        if len(names) > 1 and len(ids) <= 1:
            first = min(names & ids or names)
            owners |= {name: first for name in [*owners, *names] if owners.get(name, name) in names}
            notes.append(f"study {study} is in {', '.join(sorted(names))}, taken for one patient, {first}")
    return [replace(case, patient=owners.get(case.patient, case.patient)) for case in cases]


def _by_patient_id(series: Sequence[tuple[RawCase, str]], tree: Tree) -> tuple[list[RawCase], list[str]]:
    """Scans, whose patients are folders so far, by the PatientID beside each; and a note for the user."""
    given = {patient_id for _, patient_id in series}
    folders = {case.path for case, _ in series}
    if len(folders) > 1 and len(given) == 1 and given != {""}:
        note = (
            f"all {len(folders)} DICOM folders have the PatientID {given.pop()}, taken for an anonymiser's: "
            "their names are the patients; if it is one person, that person may be in train and in test"
        )
        return [case for case, _ in series], [note]
    ids: dict[str, set[str]] = {}  # by folder
    for case, patient_id in series:
        ids.setdefault(case.patient, set()).update({patient_id} - {""})
    cases, folders_of = [], {}
    for case, patient_id in series:
        # A series without an ID goes to the one person whose folder it lies in.
        others = ids[case.patient]
        patient = patient_id or (next(iter(others)) if len(others) == 1 else case.patient)
        cases.append(replace(case, patient=patient))
        folders_of.setdefault(patient, set()).add(case.patient)
    joined = {patient: sorted(names) for patient, names in folders_of.items() if len(names) > 1}
    if not joined:
        return cases, []
    first = min(joined)
    note = (
        f"the PatientID of {len(joined)} patients is in several folders, which are taken together: "
        f"{first} in {', '.join(joined[first][:5])}{', ...' if len(joined[first]) > 5 or len(joined) > 1 else ''}"
    )
    return cases, [note]
