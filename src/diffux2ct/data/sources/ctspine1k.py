"""CTSpine1K as released: 1005 NIfTI scans of four collections, each with a label map of its vertebrae.

The releases differ in their folders (``raw_data/volumes/COLONOG``, ``rawdata``, ``data``) and agree in their names:
``<scan>.nii.gz`` and ``<scan>_seg.nii.gz``. The official split is ``data_split.txt`` of the repository
MIRACLE-Center/CTSpine1K; on Hugging Face it lies in ``metadata``.
"""

import re
from pathlib import Path

from diffux2ct.data.prepared.split import read_split, resolve_conflicts
from diffux2ct.data.sources.common import Discovery, RawCase, Tree, first_of_each, stem

ORIGINS = ("COLONOG", "HNSCC-3DCT-RT", "MSD-T10", "COVID-19")
_NAMES = (
    (re.compile(r"(1\.3\.6\.1\.4\.1\.9328\.50\.4\.\d+|CTC-\d+)"), "COLONOG"),
    (re.compile(r"HN_P\d+"), "HNSCC-3DCT-RT"),
    (re.compile(r"liver_\d+"), "MSD-T10"),  # MSD's Task03_Liver; the release calls it T10
    (re.compile(r"volume-covid19-A-\d+"), "COVID-19"),
)
_FOREIGN = f"not in a folder of CTSpine1K's four collections ({', '.join(ORIGINS)}) nor named like its scans"
_DICOM = "DICOM; CTSpine1K's scans are the NIfTI files of its release"


def find_ctspine1k(tree: Tree) -> Discovery:
    """Every scan, with its labels if they are there; the patient is the start of the scan's name.

    Left out with a reason: label maps without their scan, names that are of none of the four collections, a scan that
    is there twice, and DICOM (the release is NIfTI; its labels fit only that).
    """
    labels: dict[str, Path] = {}
    scans, left_out = [], []
    for path in tree.files:
        name = stem(path)
        if name.endswith("_seg") or _in_labels(path.relative_to(tree.root)):
            labels.setdefault(name.removesuffix("_seg"), path)
        elif _origin(path) is None:
            left_out.append((tree.below(path), _FOREIGN))
        else:
            scans.append(path)
    left_out += [(tree.below(folder), _DICOM) for folder in tree.dicom]
    cases = [
        RawCase(patient_of(stem(path)), path, labels.get(stem(path)), None, "ctspine1k", _origin(path) or "")
        for path in scans
    ]
    cases, twice = first_of_each(cases, tree)
    here = {stem(case.path) for case in cases}
    left_out += twice
    left_out += [(tree.below(path), "labels without their scan") for name, path in labels.items() if name not in here]
    split, notes = _official(tree, cases)
    bare = [case for case in cases if case.labels is None]
    if bare:
        notes.append(f"{len(bare)} scans have no labels, e.g. {tree.below(bare[0].path)}")
    return Discovery(cases, left_out, split, notes)


def patient_of(name: str) -> str:
    """The patient of a scan's name: ``volume-covid19-A-0202_0_ct`` is of ``volume-covid19-A-0202``."""
    for pattern, _ in _NAMES:
        if match := pattern.match(name):
            return match[0]
    return name


def _origin(path: Path) -> str | None:
    """By the folder it lies in, or by its name where a release has no such folders."""
    folders = {part.upper() for part in path.parent.parts}
    by_name = (origin for pattern, origin in _NAMES if pattern.match(stem(path)))
    return next((origin for origin in ORIGINS if origin in folders), None) or next(by_name, None)


def _in_labels(path: Path) -> bool:
    return any(part.lower() in ("labels", "label", "masks", "mask", "segmentation") for part in path.parent.parts)


def _official(tree: Tree, cases: list[RawCase]) -> tuple[dict[str, list[str]] | None, list[str]]:
    """The lists of data_split.txt (trainset, test_public = val, test_private = test) as patients, and notes."""
    path = next((p for p in tree.texts if p.name.lower() == "data_split.txt"), None)
    if path is None:
        return None, []
    listed = {part: [patient_of(name) for name in names] for part, names in read_split(path).items()}
    lists, conflicts = resolve_conflicts(listed)
    here, total = {case.patient for case in cases}, sum(map(len, lists.values()))
    named = {name for names in lists.values() for name in names}
    notes = [f"{tree.below(path)}: {line}" for line in conflicts]
    if here != named:
        notes.append(
            f"{tree.below(path)} names {total} patients; {len(named & here)} of them are here, "
            f"{len(here - named)} scans' patients are not named"
        )
    return lists, notes
