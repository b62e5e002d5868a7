"""The meaning of the values in ``labels.npy``: one numbering for every data set, phantoms and implants included.

Vertebrae are numbered as in VerSe and CTSpine1K, which CTPelvic1K's numbers are mapped onto (``REMAP``). Every screw
and every rod has a value of its own, so that each can be found and measured alone.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import product

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from diffux2ct.arguments import check_choice
from diffux2ct.errors import UserError

VERTEBRAE = (*(f"C{i}" for i in range(1, 8)), *(f"T{i}" for i in range(1, 13)), *(f"L{i}" for i in range(1, 7)))
"""C1 = 1, ..., C7 = 7, T1 = 8, ..., T12 = 19, L1 = 20, ..., L5 = 24, L6 = 25."""

FIRST_SCREW, FIRST_ROD, FIRST_OTHER = 101, 151, 201
_OTHERS = (
    "sacrum", "left_hip", "right_hip",
    "lumbar_spine",  # where a data set does not separate its vertebrae
    "ribs", "left_femur", "right_femur", "sternum", "left_clavicle", "right_clavicle", "left_scapula", "right_scapula",
    "left_humerus", "right_humerus", "coccyx", "left_hip_prosthesis", "right_hip_prosthesis", "bone_plate",
)  # fmt: skip
LABELS: dict[str, int] = {name: value for value, name in enumerate((*VERTEBRAE, *_OTHERS), start=1)}
"""Vertebrae, then sacrum = 26, left_hip = 27, ..., bone_plate = 43."""
LUMBAR = ("L1", "L2", "L3", "L4", "L5")

_LIMBS = ("humerus", "scapula", "clavicle", "femur", "hip")  # in the order of TotalSegmentator's numbers
# Numbers of a source -> ours; a value that is not listed becomes 0.
REMAP: dict[str, dict[int, int]] = {
    "ctspine1k": {value: value for value in range(1, 26)},
    "ctpelvic1k": {
        1: LABELS["sacrum"],
        # The set's own code names the right hip first; in a scan of its COLONOG part label 3 lies on the liver's side.
        # ``hips_by_position`` settles it scan by scan.
        2: LABELS["left_hip"],
        3: LABELS["right_hip"],
        4: LABELS["lumbar_spine"],
    },
    # The task "total" of TotalSegmentator 2; its organs and muscles are dropped.
    "totalsegmentator": {
        25: LABELS["sacrum"],
        26: LABELS["sacrum"],  # S1
        **{51 - value: value for value in range(LABELS["C1"], LABELS["L5"] + 1)},  # 27 = L5, ..., 50 = C1
        **dict.fromkeys(range(92, 116), LABELS["ribs"]),
        **{69 + i: LABELS[f"{side}_{bone}"] for i, (bone, side) in enumerate(product(_LIMBS, ("left", "right")))},
        116: LABELS["sternum"],
    },
}


def screw_label(index: int) -> int:
    """Value of the screw ``index`` (0, 1, ...; 50 at most)."""
    return _numbered(FIRST_SCREW, FIRST_ROD, index, "screw")


def rod_label(index: int) -> int:
    """Value of the rod ``index`` (0, 1, ...; 50 at most)."""
    return _numbered(FIRST_ROD, FIRST_OTHER, index, "rod")


def label_name(value: int) -> str:
    """``L3``, ``left_hip``, ``screw_2``, ``rod_1``, ... (implants counted from 1); ``label_<value>`` if unknown."""
    if FIRST_SCREW <= value < FIRST_ROD:
        return f"screw_{value - FIRST_SCREW + 1}"
    if FIRST_ROD <= value < FIRST_OTHER:
        return f"rod_{value - FIRST_ROD + 1}"
    return next((name for name, number in LABELS.items() if number == value), f"label_{value}")


def remap(labels: UInt8[np.ndarray, "..."], mapping: Mapping[int, int]) -> UInt8[np.ndarray, "..."]:
    """Replace every value by ``mapping``; values that it does not list become 0."""
    table = np.zeros(256, np.uint8)
    for old, new in mapping.items():
        table[old] = new
    return table[labels]


def hips_by_position(labels: UInt8[np.ndarray, "d h w"]) -> tuple[UInt8[np.ndarray, "d h w"], bool]:
    """The labels with the hip that lies farther to the Left named left, and True if they were exchanged.

    labels: in our numbers, axes LPS. Public sets disagree on which hip comes first; the patient does not.
    """
    left, right = (np.flatnonzero((labels == LABELS[name]).any((0, 1))) for name in ("left_hip", "right_hip"))
    if not len(left) or not len(right) or left.mean() >= right.mean():
        return labels, False
    table = np.arange(256, dtype=np.uint8)
    table[LABELS["left_hip"]], table[LABELS["right_hip"]] = LABELS["right_hip"], LABELS["left_hip"]
    return table[labels], True


_NEIGHBOURS = 60.0  # mm: the centres of two neighbouring vertebrae lie closer together
_CERVICAL = 25.0  # mm: so do, at the median, those of cervical ones; lumbar ones lie 30 to 40 mm apart
_HIPS = 40.0  # mm: the centres of the hips lie farther apart


def contradiction(labels: UInt8[np.ndarray, "d h w"], spacing: Sequence[float | int]) -> str | None:
    """The fault of labels whose names contradict the anatomy, None where they can be right.

    labels: in our numbers, axes LPS. spacing: (x, y, z) mm. Vertebrae must follow each other from Superior down at the
    distances that vertebrae have, and the pelvis must lie below L3; slivers at the scan's edge are ignored.
    """
    values = [*range(LABELS["C1"], LABELS["L6"] + 1), *(LABELS[n] for n in ("sacrum", "left_hip", "right_hip"))]
    counts = np.bincount(labels.ravel(), minlength=256)
    whole = 0.05 * np.median([counts[v] for v in values if counts[v]] or [0])
    boxes = ndimage.find_objects(labels)
    places: dict[int, np.ndarray] = {}
    for value in values:
        if counts[value] and counts[value] >= whole:
            inside = np.argwhere(labels[boxes[value - 1]] == value)
            corner = np.array([side.start for side in boxes[value - 1]])
            places[value] = (inside.mean(0) + corner)[::-1] * np.asarray(spacing, float)
    # Neighbouring vertebrae, from Superior down.
    gaps = {}
    for value in range(LABELS["C1"], LABELS["L6"]):
        if value in places and value + 1 in places:
            upper, lower = places[value], places[value + 1]
            pair, gaps[value] = (f"{label_name(value)} and {label_name(value + 1)}", np.linalg.norm(upper - lower))
            if gaps[value] > _NEIGHBOURS:
                return f"{pair} lie {gaps[value]:.0f} mm apart"
            if lower[2] >= upper[2]:
                return f"{label_name(value + 1)} lies above {label_name(value)}"
    cervical = [gap for value, gap in gaps.items() if value < LABELS["C7"]]
    if cervical and np.median(cervical) > _CERVICAL:
        return f"cervical vertebrae lie {np.median(cervical):.0f} mm apart"
    # The sacrum between the hips, and all of the pelvis below the spine.
    sacrum, *hips = (places.get(LABELS[name]) for name in ("sacrum", "left_hip", "right_hip"))
    if hips[0] is not None and hips[1] is not None:
        if (apart := np.linalg.norm(hips[0] - hips[1])) < _HIPS:
            return f"left_hip and right_hip lie {apart:.0f} mm apart"
        if sacrum is not None and not min(hips[0][0], hips[1][0]) < sacrum[0] < max(hips[0][0], hips[1][0]):
            return "sacrum does not lie between the hips"
    spine = [value for value in places if value <= LABELS["L3"]]
    for value in places:
        if value > LABELS["L6"] and spine and places[value][2] > min(places[v][2] for v in spine):
            return f"{label_name(value)} lies above {label_name(max(spine))}"
    return None


def _numbered(first: int, end: int, index: int, what: str) -> int:
    if not 0 <= index < end - first:
        raise ValueError(f"{what} {index}: there are labels for {end - first}")
    return first + index


# Structures to segment: names and groups of labels as classes 1..K of a voxel.

_SPINE = frozenset(range(LABELS["C1"], LABELS["L6"] + 1)) | {LABELS["lumbar_spine"]}
_SCREWS, _RODS = frozenset(range(FIRST_SCREW, FIRST_ROD)), frozenset(range(FIRST_ROD, FIRST_OTHER))
GROUPS: dict[str, frozenset[int]] = {
    "spine": _SPINE,
    "cervical_spine": frozenset(range(LABELS["C1"], LABELS["C7"] + 1)),
    "thoracic_spine": frozenset(range(LABELS["T1"], LABELS["T12"] + 1)),
    # A sixth lumbar vertebra too: those who label the lumbar spine as one do not leave it out.
    "lumbar_spine": frozenset(LABELS[name] for name in (*LUMBAR, "L6", "lumbar_spine")),
    "hips": frozenset((LABELS["left_hip"], LABELS["right_hip"])),
    "femurs": frozenset((LABELS["left_femur"], LABELS["right_femur"])),
    "screws": _SCREWS,
    "rods": _RODS,
    "implants": _SCREWS | _RODS | set(range(LABELS["left_hip_prosthesis"], LABELS["bone_plate"] + 1)),
}
"""Several labels under one name; a group goes before a label of the same name (``lumbar_spine``)."""


def structure_values(name: str) -> frozenset[int]:
    """Values in ``labels.npy`` of a structure. UserError for a name that is neither a group nor a label."""
    if name in GROUPS:
        return GROUPS[name]
    check_choice("dataset.labels", name, [*GROUPS, *LABELS])
    return frozenset((LABELS[name],))


def class_table(structures: Sequence[str]) -> UInt8[np.ndarray, "256"]:
    """Class of each label value: k for those of ``structures[k - 1]``, 0 for the rest.

    Raises UserError for one name instead of a list, and where two structures share a label or are the same.
    """
    if isinstance(structures, str):
        raise UserError(f"dataset.labels={structures}: give a list, dataset.labels=[{structures}]")
    table = np.zeros(256, np.uint8)
    for number, name in enumerate(structures, start=1):
        values = sorted(structure_values(name))
        taken = table[values].max()
        if taken:
            raise UserError(
                f"dataset.labels: {name} and {structures[taken - 1]} share voxels; name structures that do not overlap"
            )
        table[values] = number
    return table


def reduce_classes(classes: UInt8[np.ndarray, "d h w"], factor: int) -> UInt8[np.ndarray, "_ _ _"]:
    """Blocks of ``factor`` along every axis as one voxel each.

    A block of which at least half is structures becomes the most frequent of them (of equal ones the first), any other
    background.
    """
    if factor == 1:
        return classes.copy()
    d, h, w = (side // factor for side in classes.shape)
    blocks = classes.reshape(d, factor, h, factor, w, factor)
    result, (most, filled) = np.zeros((d, h, w), np.uint8), np.zeros((2, d, h, w), np.int64)
    for number in np.flatnonzero(np.bincount(classes.ravel(), minlength=1)[1:]) + 1:
        count = (blocks == number).sum((1, 3, 5))
        filled += count
        result[count > most] = number
        most = np.maximum(most, count)
    return np.where(2 * filled >= factor**3, result, 0).astype(np.uint8)


def check_structures(root: object, structures: Sequence[str], found: Collection[int] | None, every: bool) -> None:
    """UserError unless the values ``found`` in a data set hold the structures: each one, or else at least one.

    found: None where the data set does not list them.
    """
    absent = [name for name in structures if found is not None and not structure_values(name) & frozenset(found)]
    if absent and (every or len(absent) == len(structures)):
        raise UserError(
            f"{root}: no case has a label of {', '.join(absent)}; set dataset.labels to structures that it has "
            "(label_names in its dataset.json; numbers of a source's own have no names there)"
        )
