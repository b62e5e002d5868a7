"""The result of every source, and the walk through a raw folder.

A source says which files are scans, of which patients, with which labels, and what else lies there and why it is not
used. What is in the files is settled by ``data/io``; here at most a DICOM header is read.
"""

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffux2ct.data.io.dicom.kind import has_dicom_magic, is_image, named_dicom
from diffux2ct.data.prepared.tables import plain_name

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".mha", ".mhd", ".nrrd", ".nhdr")
_VOXELS = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw")  # of a header beside
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar")
_LABEL = re.compile(r"\d*(labels?|masks?|segs?|segmentations?|4label|5label)(maps?)?(tr|ts)?\d*")
_NEUTRAL = {"ct", "data", "image", "images", "img", "volume", "volumes", "vol", "scan"}  # in names of all scans
_TAGS = [
    "Modality", "SeriesInstanceUID", "SeriesNumber", "PatientID", "StudyInstanceUID", "ImageType", "NumberOfFrames",
]  # fmt: skip
_KINDS = {
    "CR": "radiograph", "DX": "radiograph", "SEG": "segmentation", "SR": "report", "RTSTRUCT": "contours",
    "PR": "presentation state", "KO": "key object note",
}  # fmt: skip


_NO_SCAN = "by its content no CT scan or label map"


@dataclass(frozen=True)
class RawCase:
    """One scan.

    patient: whose it is; splits are by patient. path: a volume file, the folder of a DICOM series, or an X2CT-GAN
    ``.h5``. labels: its label file. series_uid, patient_id: which series of a DICOM folder; None = its CT series with
    most slices. folders: where the files of a series lie that is spread over several folders below path. remap: how
    its label values become ours, a key of ``labels.REMAP``; None = as stored. origin: the part of a collection that it
    is from, such as COLONOG or CLINIC-metal. study: StudyInstanceUID, which one patient alone has.
    """

    patient: str
    path: Path
    labels: Path | None = None
    series_uid: str | None = None
    remap: str | None = None
    origin: str = ""
    patient_id: str | None = None
    folders: tuple[Path, ...] = ()
    study: str = ""


@dataclass(frozen=True)
class Discovery:
    """Contents of a raw folder.

    cases: the scans. left_out: (path below the folder, reason) of what is not used. split: official lists that lie
    there, patients by part ("train", "val", "test"), nobody in two of them. notes: lines for the user.
    """

    cases: list[RawCase]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    split: dict[str, list[str]] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tree:
    """A raw folder walked through: volume files, folders with DICOM, .h5 files, and tables and lists (.txt, .csv).

    others: (path below the folder, reason) of unusable files: packed archives, folders that cannot be read.
    """

    root: Path
    files: list[Path]
    dicom: list[Path]
    hdf5: list[Path]
    texts: list[Path]
    others: list[tuple[str, str]]

    def below(self, path: Path) -> str:
        """A path as the user sees it: below the raw folder, with forward slashes."""
        return plain_name(path.relative_to(self.root).as_posix())


@dataclass(frozen=True)
class DicomFolder:
    """A folder with one or several DICOM series (``mixed``): entries of its first header, and its number of files."""

    path: Path
    num_files: int
    modality: str
    series_uid: str
    series_number: str
    patient: str
    study: str
    localizer: bool
    mixed: bool


def walk(raw: Path) -> Tree:
    """Look through ``raw``; hidden names are left out, links are followed, and a folder linked twice counts once."""
    tree = Tree(raw, [], [], [], [], [])
    seen = set()

    def report(error: OSError) -> None:
        tree.others.append((tree.below(Path(error.filename)), f"cannot be read ({error.strerror})"))

    for where, folders, names in os.walk(raw, followlinks=True, onerror=report):
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder above would go on for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        rest = []
        for name in sorted(name for name in names if not name.startswith(".")):
            path, low = Path(where, name), name.lower()
            if low.endswith(SUFFIXES):
                tree.files.append(path)
            elif low.endswith((".h5", ".hdf5")):
                tree.hdf5.append(path)
            elif low.endswith((".txt", ".csv")):
                tree.texts.append(path)
            elif low.endswith(_ARCHIVES):
                tree.others.append((tree.below(path), "an archive; unpack it first"))
            elif name != "DICOMDIR":
                rest.append(path)
        # By name first: a thousand patients' slices need not all be opened.
        others = [path for path in rest if not named_dicom(path) and not has_dicom_magic(path)]
        if len(others) < len(rest):
            tree.dicom.append(Path(where))
        images = [path for path in others if is_image(path)]
        tree.files.extend(images)
        tree.others.extend(_unused([path for path in others if path not in images], tree))
    return tree


def _unused(paths: list[Path], tree: Tree) -> list[tuple[str, str]]:
    """Files of one folder that are no scans: one by one, or by suffix where they are many."""
    by_suffix: dict[str, list[Path]] = {}
    for path in paths:
        name = path.name.lower()
        if not name.endswith(_VOXELS) or not any(other.stem == path.name.split(".")[0] for other in tree.files):
            by_suffix.setdefault(path.suffix, []).append(path)
    lines = []
    for suffix, group in by_suffix.items():
        if len(group) <= 3:
            lines += [(tree.below(path), _NO_SCAN) for path in group]
        else:
            lines.append((tree.below(group[0].with_name(f"*{suffix}")), f"{len(group)} files: {_NO_SCAN}"))
    return lines


def probe(folder: Path) -> DicomFolder:
    """Look at a folder of DICOM by a few of its headers; ``mixed`` if they are of several series.

    The public archives put one series in a folder, so a few headers identify it; all are read where these differ.
    """
    paths = [p for p in sorted(folder.iterdir()) if p.is_file() and _may_be_dicom(p)]
    picked = [paths[i] for i in sorted({round(k * (len(paths) - 1) / 4) for k in range(5)})] if paths else []
    headers = [header for header in map(read_header, picked) if header]
    first = headers[0] if headers else {}
    tags: Any = (first.get(tag, "") for tag in (*_TAGS[:4], "StudyInstanceUID"))
    localizer = bool(headers) and all("LOCALIZER" in header.get("ImageType", "").upper() for header in headers)
    mixed = len({(header.get("SeriesInstanceUID"), header.get("PatientID")) for header in headers}) > 1
    return DicomFolder(folder, len(paths), *tags, localizer, mixed)  # type: ignore[call-arg]


def read_header(path: Path) -> dict[str, str]:
    """Modality, series, patient and the like of a DICOM file, as text; empty if it cannot be read."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)
            return {tag: str(header.get(tag) or "").strip() for tag in _TAGS if tag in header}
        except Exception:  # of any kind; the reader names the fault
            return {}


def not_a_ct(found: DicomFolder) -> str | None:
    """The reason why a folder of DICOM is no CT scan, or None."""
    if found.localizer:
        return "a localizer (scout), not a CT volume"
    if found.modality in ("CT", ""):  # without a header, the reader names the fault
        return None
    kind = f" ({_KINDS[found.modality]})" if found.modality in _KINDS else ""
    return f"DICOM of modality {found.modality}{kind}, not CT"


def stem(path: Path) -> str:
    """A volume file's name without its suffix."""
    name = plain_name(path.name)
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), path.suffix)
    return name.removesuffix(name[len(name) - len(suffix) :])


def is_label(path: Path) -> bool:
    """True for a volume file (path below the raw folder) that is a label map, by words of its and its folders' names.

    So ``s0308_seg`` and what lies in ``labelsTr`` are labels; a name that ends in ``ct`` is a scan whatever stands
    before, as in ``sub-1_label-22_ct``.
    """
    own = words(stem(path))
    named = [] if own[-1:] == ["ct"] else own
    return any(_LABEL.fullmatch(word) for word in [*named, *(w for part in path.parent.parts for w in words(part))])


def key(path: Path) -> str:
    """The part that a scan's name and its label's name share."""
    return "_".join(w for w in words(stem(path)) if w not in _NEUTRAL and not _LABEL.fullmatch(w))


def words(text: str) -> list[str]:
    """The words of a name, lower case."""
    return [word for word in re.split(r"[_\-. ]+", text.lower()) if word]


def sorted_cases(cases: Iterable[RawCase]) -> list[RawCase]:
    """Cases by patient, then path and series: the same order on every machine."""
    return sorted(cases, key=lambda case: (case.patient, case.path.as_posix(), case.series_uid or ""))


def first_of_each(cases: Sequence[RawCase], tree: Tree) -> tuple[list[RawCase], list[tuple[str, str]]]:
    """The cases without those whose patient and file name came before, and these as ``left_out``."""
    kept: dict[tuple[str, str], RawCase] = {}
    left_out = []
    for case in sorted_cases(cases):
        first = kept.setdefault((case.patient, case.path.name), case)
        if first is not case:
            left_out.append((tree.below(case.path), f"the same name as {tree.below(first.path)}, which is used"))
    return list(kept.values()), left_out


def _may_be_dicom(path: Path) -> bool:
    return named_dicom(path) or has_dicom_magic(path)
