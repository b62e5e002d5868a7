"""A case as every run reconstructs it: three planes in both windows, the truth in front, errors below."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Num

from diffux2ct.evaluation.report_cases import colour_bar, error_figure, figure
from diffux2ct.viz.slices import ERROR_LIMIT, PLANES, WINDOWS, bone_centre, grey, orthoslices

CASES_STYLE = """
.plots { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); }
.planes { display: flex; flex-wrap: wrap; gap: 24px 20px; }
.planes .scroll { min-width: 0; max-width: 100%; }
.grid.compared { grid-template-columns: 92px repeat(var(--columns), minmax(104px, var(--widest))); }
.grid.compared .col { overflow-wrap: anywhere; font-size: 12px; line-height: 1.3; }
"""

_WIDEST = {4: 140}
"""Pixels of a picture by the number of columns, so that two planes stand side by side on a page of 1480."""


@dataclass(frozen=True)
class ComparedCase:
    """truth, and each run's reconstruction by the run's name: HU [D, H, W] of one shape. spacing: (x, y, z) mm."""

    case_id: str
    truth: Num[np.ndarray, "d h w"]
    reconstructions: Mapping[str, Num[np.ndarray, "d h w"]]
    spacing: tuple[float, float, float]


def compared_section(label: str, case: ComparedCase, scores: Mapping[str, str], place: int) -> str:
    """The section of a case. label: why it is shown. scores: a line under each run's name. place: in the viewer."""
    name = escape(case.case_id)
    return (
        f"<section class=case><h2>{name} <em>{escape(label)} case</em>"
        f" <button type=button class=link data-open-case={place}>show in the viewer</button></h2>"
        f"{_planes(case, scores)}{colour_bar()}</section>"
    )


def _planes(case: ComparedCase, scores: Mapping[str, str]) -> str:
    """A grid a plane: columns truth and runs; rows soft and bone window, and errors."""
    centre = bone_centre(case.truth)
    slices = {who: orthoslices(hu, centre) for who, hu in {"": case.truth, **case.reconstructions}.items()}
    heads = [
        "Truth",
        *(f"{escape(run)}<small>{escape(scores.get(run, ''))}</small>" for run in case.reconstructions),
    ]
    grids = []
    for axis, plane in enumerate(PLANES):
        position = f"slice {centre[axis] + 1} of {case.truth.shape[axis]}"
        cells = [f"<div class=row><b>{plane.capitalize()}</b><br>{position}</div>"]
        cells += [f"<span class=col>{head}</span>" for head in heads]
        images = {who: planes[plane] for who, planes in slices.items()}
        cells += _rows(images, plane, escape(case.case_id))
        style = f"--columns:{len(heads)};--widest:{_WIDEST.get(len(heads), 192)}px"
        grids.append(
            f"<div class=scroll><div class='grid compared' style='{style}'>{''.join(cells)}</div></div>"
        )
    return f"<div class=planes>{''.join(grids)}</div>"


def _rows(images: Mapping[str, np.ndarray], plane: str, name: str) -> list[str]:
    """The cells of a plane's rows. images: HU by run, the truth's under ""; name: the case's, escaped."""
    cells = []
    for window, (low, high) in WINDOWS.items():
        cells.append(f"<div class=row>{window.capitalize()}<br>{low:g} to {high:g} HU</div>")
        for who, image in images.items():
            told = f"{name}: {plane} {escape(who) or 'truth'}, {window} window"
            cells.append(figure(grey(image, (low, high)), plane, told))
    cells.append("<div class=row>Error<br>reconstruction − truth</div><span></span>")
    truth = np.asarray(images[""], np.float32)
    for who, image in images.items():
        if who:
            error = np.asarray(image, np.float32) - truth
            cells.append(error_figure(error, ERROR_LIMIT, f"{name}: {plane} {escape(who)}, error"))
    return cells
