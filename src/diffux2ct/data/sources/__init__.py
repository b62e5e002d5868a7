"""Find the CT scans in a raw folder: any folder, and the public data sets as they are downloaded.

One file a data set. A source says which files are scans, of which patients and with which labels, and what else is
there and why it is not used; docs/data.md shows the layouts. What is in the files is settled by ``volume_io``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from diffux2ct.data.sources import ctpelvic1k, ctspine1k
from diffux2ct.data.sources.common import Discovery, RawCase, Tree, walk
from diffux2ct.data.sources.ctpelvic1k import find_ctpelvic1k
from diffux2ct.data.sources.ctspine1k import find_ctspine1k
from diffux2ct.data.sources.folder import find_folder
from diffux2ct.data.sources.lidc_idri import find_lidc_idri
from diffux2ct.data.sources.lumbarv import find_lumbarv
from diffux2ct.data.sources.x2ct import find_x2ct
from diffux2ct.errors import UserError

__all__ = ["ORIGINS", "SOURCES", "Discovery", "RawCase", "discover"]

SOURCES: dict[str, Callable[..., Discovery]] = {
    "folder": find_folder,
    "lidc_idri": find_lidc_idri,
    "ctspine1k": find_ctspine1k,
    "ctpelvic1k": find_ctpelvic1k,
    "lumbarv": find_lumbarv,
    "x2ct": find_x2ct,
}
ORIGINS: dict[str, tuple[str, ...]] = {"ctspine1k": ctspine1k.ORIGINS, "ctpelvic1k": ctpelvic1k.ORIGINS}
"""The parts of the collections that have any."""


def discover(name: str, raw: str | Path, *, origins: Sequence[str] | None = None) -> Discovery:
    """The scans under ``raw`` by the layout ``name``, and what there is not used.

    name: folder, lidc_idri, ctspine1k, ctpelvic1k, lumbarv or x2ct. origins: which parts of a collection to use
    (``ORIGINS``); None = all of CTSpine1K, and all of CTPelvic1K but COLONOG, whose scans CTSpine1K has too.
    Raises UserError for an unknown layout or part, a missing folder, or one that holds no scan.
    """
    if name not in SOURCES:
        raise UserError(f"dataset.prepare.source={name}: choose one of {', '.join(sorted(SOURCES))}")
    raw = Path(raw)
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; raw= is the folder that holds the CT scans")
    tree = walk(raw)
    origins = [origins] if isinstance(origins, str) else origins
    if origins is None:
        found = SOURCES[name](tree)
    elif unknown := set(origins) - set(ORIGINS.get(name, ())):
        known = ", ".join(ORIGINS.get(name, ())) or "none"
        raise UserError(f"dataset.prepare.origins={sorted(unknown)}: source {name} has the parts {known}")
    elif name == "ctpelvic1k":
        found = find_ctpelvic1k(tree, tuple(origins))
    else:
        found = _only(SOURCES[name](tree), origins, tree)
    found = replace(found, left_out=sorted([*found.left_out, *tree.others]))
    if not found.cases:
        kinds = (
            "X2CT-GAN's ct_xray_data.h5"
            if name == "x2ct"
            else "a DICOM CT series, .nii, .nii.gz, .mha, .mhd or .nrrd"
        )
        raise UserError(f"{raw}: no CT scan found for source {name} ({kinds}){_why(found)}; check raw=")
    return found


def _only(found: Discovery, origins: Sequence[str], tree: Tree) -> Discovery:
    """The cases of some parts; the others are left out."""
    kept = [case for case in found.cases if case.origin in origins]
    others = [
        (tree.below(case.path), f"{case.origin}: not in dataset.prepare.origins")
        for case in found.cases
        if case.origin not in origins
    ]
    return replace(found, cases=kept, left_out=[*found.left_out, *others])


def _why(found: Discovery) -> str:
    if not found.left_out:
        return ""
    path, reason = found.left_out[0]
    return f"; {len(found.left_out)} left out, the first: {path}: {reason}"
