"""Structures to segment: names and groups of ``label_scheme`` as classes 1..K of a voxel."""

import difflib
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import UInt8

from diffux2ct.data.label_scheme import FIRST_OTHER, FIRST_ROD, FIRST_SCREW, LABELS, LUMBAR
from diffux2ct.errors import UserError

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
    "implants": _SCREWS
    | _RODS
    | {LABELS[name] for name in ("left_hip_prosthesis", "right_hip_prosthesis", "bone_plate")},
}
"""Several labels under one name; a group goes before a label of the same name (``lumbar_spine``)."""


def structure_values(name: str) -> frozenset[int]:
    """Values in ``labels.npy`` of a structure. UserError for a name that is neither a group nor a label."""
    if name in GROUPS:
        return GROUPS[name]
    if name in LABELS:
        return frozenset((LABELS[name],))
    known = [*LABELS, *GROUPS]
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(dict.fromkeys(known))}"
    raise UserError(f"dataset.labels: there is no structure {name!r}; {hint}")


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
                f"dataset.labels: {name} and {structures[taken - 1]} share voxels; name structures that do not "
                "overlap"
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
    result, most = np.zeros((d, h, w), np.uint8), np.zeros((d, h, w), np.int64)
    filled = np.zeros((d, h, w), np.int64)
    for number in np.flatnonzero(np.bincount(classes.ravel(), minlength=1)[1:]) + 1:
        count = (blocks == number).sum((1, 3, 5))
        filled += count
        result[count > most] = number
        most = np.maximum(most, count)
    return np.where(2 * filled >= factor**3, result, 0).astype(np.uint8)


def check_structures(
    root: object, structures: Sequence[str], found: Collection[int] | None, every: bool
) -> None:
    """UserError unless the values ``found`` in a data set hold the structures: each one, or else at least one.

    found: None where the data set does not tell.
    """
    absent = [
        name for name in structures if found is not None and not structure_values(name) & frozenset(found)
    ]
    if absent and (every or len(absent) == len(structures)):
        raise UserError(
            f"{root}: no case has a label of {', '.join(absent)}; set dataset.labels to structures that it has "
            "(label_names in its dataset.json; numbers of a source's own have no names there)"
        )
