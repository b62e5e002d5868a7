"""CTPelvic1K as released: its masks, its own CTs (CLINIC, CLINIC-metal), and the CTs of five other collections.

The masks define what belongs to it: ``dataset<k>_<scan>_mask_4label.nii.gz``, k = 1..7 for the seven parts (those of
CLINIC-metal lack the prefix), in folders of their own. Their CTs are found by the names of their own collections:

- ABDOMEN ``img0001.nii.gz``, CERVIX ``0507688-Image.nii.gz`` (Multi-Atlas Labeling Beyond the Cranial Vault),
- MSD_T10 ``colon_001.nii.gz``, KITS19 ``case_00014/imaging.nii.gz``,
- COLONOG ``1.3.6.1.4.1.9328.50.4.0001``: NIfTI, or TCIA's DICOM tree with the series number that the mask's name gives,
- CLINIC ``dataset6_CLINIC_0001_data.nii.gz``, CLINIC-metal ``dataset7_CLINIC_metal_0000_data.nii.gz``.
"""

import re
from pathlib import Path

from diffux2ct.data.sources.common import Discovery, RawCase, Tree, is_label, not_a_ct, probe, stem
from diffux2ct.errors import UserError

ORIGINS = ("ABDOMEN", "COLONOG", "MSD_T10", "KITS19", "CERVIX", "CLINIC", "CLINIC-metal")
# COLONOG's 731 are scans of CTSpine1K too: using both would put one scan on both sides.
DEFAULT_ORIGINS = tuple(origin for origin in ORIGINS if origin != "COLONOG")
_MASK = re.compile(r"(?:dataset(\d)_)?(.+?)_mask(?:_\d?label)?", re.IGNORECASE)
_COLONOG = re.compile(r"(1\.3\.6\.1\.4\.1\.9328\.50\.4\.\d+)(?:_(\d+))?(?:_\d+)?")


def find_ctpelvic1k(tree: Tree, origins: tuple[str, ...] = DEFAULT_ORIGINS) -> Discovery:
    """The scan of every mask, with the mask as its labels, and CLINIC scans without one.

    origins: which of ``ORIGINS`` to use; COLONOG is left out unless it is named. Left out with a reason: masks whose
    CT is not there, scans of the other collections that CTPelvic1K has no mask of, and parts not in ``origins``.
    """
    masks, scans = {}, []
    for path in tree.files:
        match = _MASK.fullmatch(stem(path))
        if match:
            masks[path] = (_origin(match[1], match[2]), match[2])
        elif not is_label(path.relative_to(tree.root)):
            scans.append(path)
    index = {_canonical(path): path for path in reversed(scans)}  # of two that are named alike, the first
    cases, left_out, used = [], [], set()
    for path, (origin, name) in masks.items():
        scan = index.get(_words(name)) or (_colonog_scan(name, index, tree) if origin == "COLONOG" else None)
        if origin not in origins:
            left_out.append((tree.below(path), _not_chosen(origin)))
        elif scan is None:
            left_out.append((tree.below(path), "a mask whose CT is not here"))
        elif scan in used:
            left_out.append((tree.below(path), f"a second mask of {tree.below(scan)}"))
        else:
            cases.append(RawCase(_patient(origin, name), scan, path, None, "ctpelvic1k", origin))
        used |= {scan} if scan else set()
    for path in scans:
        if path in used:
            continue
        match = re.fullmatch(r"dataset([67])_(.+)_data", stem(path), re.IGNORECASE)
        origin = _origin(match[1], match[2]) if match else ""
        if match and origin in origins:
            cases.append(RawCase(_patient(origin, match[2]), path, None, None, "ctpelvic1k", origin))
        else:
            left_out.append((tree.below(path), _not_chosen(origin) if match else "CTPelvic1K has no mask of it"))
    left_out += [(tree.below(p), "DICOM that no mask belongs to") for p in tree.dicom if p not in used]
    if masks and not cases:
        raise UserError(
            f"{tree.root}: {len(masks)} CTPelvic1K masks but none of their CTs (the first: {left_out[0][0]}, "
            f"{left_out[0][1]}); put the scans of its collections below the same folder, see docs/data.md"
        )
    bare = sum(case.labels is None for case in cases)
    notes = [f"{bare} scans have no mask"] if bare else []
    return Discovery(cases, left_out, None, notes)


def _not_chosen(origin: str) -> str:
    if origin == "COLONOG":
        return "COLONOG: these scans are in CTSpine1K too; dataset.prepare.origins can name it"
    return f"{origin}: not in dataset.prepare.origins"


def _origin(number: str | None, name: str) -> str:
    if number and 1 <= int(number) <= len(ORIGINS):
        return ORIGINS[int(number) - 1]
    return "CLINIC-metal" if "metal" in name.lower() else "CLINIC" if "clinic" in name.lower() else ""


def _patient(origin: str, name: str) -> str:
    """The part and its own name of the patient: CLINIC_0001, KITS19_case_00014, ..."""
    if origin == "COLONOG" and (match := _COLONOG.fullmatch(name)):
        name = match[1]
    name = re.sub(r"^CLINIC_(metal_)?", "", name, flags=re.IGNORECASE)
    return f"{origin or 'CTPelvic1K'}_{re.sub('[_-]Image$', '', name)}"


def _canonical(path: Path) -> str:
    """A CT's name as the masks give it; KiTS19's are all imaging.nii.gz and are named by their folder."""
    name = path.parent.name if stem(path).lower() == "imaging" else stem(path)
    return _words(re.sub(r"^dataset\d_|_data$|_0000$", "", name, flags=re.IGNORECASE))


def _words(name: str) -> str:
    return name.lower().replace("-", "_")


def _colonog_scan(name: str, index: dict[str, Path], tree: Tree) -> Path | None:
    """COLONOG's mask ``<patient>_<series number>_<slices>``: the patient's NIfTI, or its DICOM series of that number.

    TCIA names a series' folder ``<number>.000000-<description>-<id>``; where it does not, the header has the number.
    """
    match = _COLONOG.fullmatch(name)
    if match is None:
        return None
    if scan := index.get(match[1]):
        return scan
    folders = [folder for folder in tree.dicom if match[1] in folder.relative_to(tree.root).parts]
    by_name = [folder for folder in folders if folder.name.split(".")[0] == match[2]]
    for folder in by_name or folders:
        found = probe(folder)
        if not_a_ct(found) is None and found.series_number == match[2]:
            return folder
    return None
