"""Find the CT scans in a raw folder: any folder, and the public data sets as they are downloaded.

One file a data set, with a function ``find_<name>`` that lists the scans, their patients and labels, and the files that
are not used, with the reason (docs/data.md shows the layouts). ``data/io`` reads the files themselves.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from diffux2ct.arguments import check_choice
from diffux2ct.data.prepared.tables import plain_name
from diffux2ct.data.sources.common import Discovery, RawCase, Tree, sorted_cases, walk
from diffux2ct.errors import UserError

__all__ = ["SOURCES", "Discovery", "RawCase", "discover"]


_MODULES = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
SOURCES: dict[str, Callable[..., Discovery]] = {
    name.removeprefix("find_"): value
    for module in _MODULES
    for name, value in vars(module).items()
    if name.startswith("find_") and value.__module__ == module.__name__
}
"""Every ``find_<name>`` of the files in this folder, by name: a new file is a new source."""


def discover(name: str, raw: str | Path, *, origins: Sequence[str] | None = None) -> Discovery:
    """The scans under ``raw`` by the layout ``name`` (of ``SOURCES``), and the files that are not used.

    origins: which parts of a collection to use (``ORIGINS`` of its file); None = all of CTSpine1K, and all of
    CTPelvic1K but COLONOG, whose scans CTSpine1K has too.
    Raises UserError for an unknown layout or part, a missing folder, or one that holds no scan.
    """
    check_choice("dataset.prepare.source", name, sorted(SOURCES))
    raw = Path(raw)
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; raw= is the folder that holds the CT scans")
    tree = walk(raw)
    find = SOURCES[name]
    parts = vars(sys.modules[find.__module__]).get("ORIGINS", ())
    origins = [origins] if isinstance(origins, str) else origins
    if unknown := set(origins or ()) - set(parts):
        known = ", ".join(parts) or "none"
        raise UserError(f"dataset.prepare.origins={sorted(unknown)}: source {name} has the parts {known}")
    if origins is None:
        found = find(tree)
    elif "origins" in inspect.signature(find).parameters:
        found = find(tree, tuple(origins))
    else:
        found = _only(find(tree), origins, tree)
    cases = sorted_cases(replace(case, patient=plain_name(case.patient)) for case in found.cases)
    found = replace(found, cases=cases, left_out=sorted([*found.left_out, *tree.others]))
    if not found.cases:
        kinds = (
            "X2CT-GAN's ct_xray_data.h5" if name == "x2ct" else "a DICOM CT series, .nii, .nii.gz, .mha, .mhd or .nrrd"
        )
        raise UserError(f"{raw}: no CT scan found for source {name} ({kinds}){_why(found)}; check raw=")
    return found


def _only(found: Discovery, origins: Sequence[str], tree: Tree) -> Discovery:
    """The cases of some parts; the others are left out."""
    others = [case for case in found.cases if case.origin not in origins]
    left_out = [(tree.below(case.path), f"{case.origin}: not in dataset.prepare.origins") for case in others]
    kept = [case for case in found.cases if case.origin in origins]
    return replace(found, cases=kept, left_out=[*found.left_out, *left_out])


def _why(found: Discovery) -> str:
    if not found.left_out:
        return ""
    path, reason = found.left_out[0]
    return f"; {len(found.left_out)} left out, the first: {path}: {reason}"
