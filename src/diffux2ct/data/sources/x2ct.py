"""X2CT-GAN's published LIDC-IDRI: ``LIDC-HDF5-256/<scan>/ct_xray_data.h5`` with its lists train.txt and test.txt."""

import re
from pathlib import Path

from diffux2ct.data.prepared.split import read_split, resolve_conflicts
from diffux2ct.data.sources.common import Discovery, RawCase, Tree

FILE = "ct_xray_data"
_SCAN = re.compile(r"(LIDC-IDRI-\d{4})\.\d+\.")  # LIDC-IDRI-0936.20000101.5169.2.1


def find_x2ct(tree: Tree) -> Discovery:
    """Every HDF5 file is a scan, named by its folder (or by what stands before ``_ct_xray_data``).

    The patient of a LIDC-IDRI scan is LIDC-IDRI-xxxx: seven patients have two scans in X2CT-GAN's train list, and
    LIDC-IDRI-0442 has one in each list.
    """
    cases, left_out = [], []
    first: dict[str, Path] = {}
    for path in tree.hdf5:
        name = scan_name(path)
        if name is None:
            left_out.append((tree.below(path), f"not named {FILE}.h5"))
        elif first.setdefault(name, path) != path:
            left_out.append((tree.below(path), f"the same name as {tree.below(first[name])}, which is used"))
        else:
            cases.append(RawCase(x2ct_patient(name), path))
    left_out += [(tree.below(path), "not an X2CT-GAN .h5 file") for path in [*tree.files, *tree.dicom]]
    split, notes = x2ct_lists(tree)
    return Discovery(cases, left_out, split, notes)


def scan_name(path: Path) -> str | None:
    """The scan's name in X2CT-GAN's lists; None for a file of another name."""
    stem = path.stem
    if stem == FILE:
        return path.absolute().parent.name
    return stem.removesuffix(f"_{FILE}") if stem.endswith(f"_{FILE}") else None


def x2ct_patient(name: str) -> str:
    """The patient of a scan's name: LIDC-IDRI-xxxx, and otherwise the name itself."""
    match = _SCAN.match(name)
    return match[1] if match else name


def x2ct_lists(tree: Tree) -> tuple[dict[str, list[str]] | None, list[str]]:
    """The patients of train.txt, val.txt and test.txt, wherever in the folder they lie; a note a patient in two."""
    folders = sorted({path.parent for path in tree.texts if path.name.lower() == "test.txt"})
    if not folders:
        return None, []
    named = {part: [x2ct_patient(name) for name in names] for part, names in read_split(folders[0]).items()}
    return resolve_conflicts(named)
