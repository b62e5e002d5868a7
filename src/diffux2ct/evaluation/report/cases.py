"""A case in pictures: three planes with error maps, X-rays with re-projections, and volume renderings."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image

from diffux2ct.evaluation.fidelity.xray_consistency import ViewResidual
from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.report.tables import number
from diffux2ct.viz.rendering import METAL_HU, RenderingUnavailable, render_case
from diffux2ct.viz.slices import (
    BONE_HU,
    EDGES,
    ERROR_COLOURS,
    ERROR_LIMIT,
    PLANES,
    WINDOWS,
    bone_centre,
    display_xray,
    error_colours,
    grey,
    orthoslices,
    png_data_uri,
)

XRAY_ERROR_LIMIT = 0.5
"""Differences of this much line integral (about 23 mm of water) and more get the full colour."""

MIN_RENDERED = 32
"""Voxels per side from which on surfaces show anything; below, a report has no renderings."""

_MOST_SCORES = 8  # in the line under a case's name


@dataclass(frozen=True)
class ReportCase:
    """What is shown of one case.

    truth, reconstruction: HU [D, H, W] of any numeric type. spacing: (x, y, z) mm. xrays: the X-rays that the model was
    given, {"frontal": [D, W], "lateral": [D, H]}, in [-1, 1]. reprojections: of views that were projected again.
    """

    case_id: str
    truth: Num[np.ndarray, "d h w"]
    reconstruction: Num[np.ndarray, "d h w"]
    spacing: tuple[float, float, float]
    xrays: Mapping[str, np.ndarray]
    reprojections: Mapping[str, ViewResidual] = field(default_factory=dict)


class Renderer:
    """Renders cases until the first time that it cannot; ``failure`` then says why, once for the whole report."""

    def __init__(self) -> None:
        self.failure = ""

    def html(self, case: ReportCase) -> str:
        """Truth and reconstruction from front and side, or nothing where that is not possible."""
        if min(case.truth.shape) < MIN_RENDERED:
            self.failure = (
                f"volumes of fewer than {MIN_RENDERED} voxels a side show no surfaces worth drawing."
            )
        if self.failure:
            return ""
        try:
            pictures = render_case(case.truth, case.reconstruction, case.spacing)
        except RenderingUnavailable as reason:
            self.failure = f"{reason}."
            return ""
        name = escape(case.case_id)
        figures = "".join(
            f'<div><figure><img class=smooth src="{jpeg_data_uri(pictures[what][view])}"'
            f' alt="{name}: {what} rendered from the {view}"></figure><p>{what.capitalize()}, {view}</p></div>'
            for view in ("front", "side")
            for what in ("truth", "reconstruction")
        )
        note = (
            f"Bone from {BONE_HU:g} HU in ivory, metal from {METAL_HU:g} HU in red, also where bone hides it."
        )
        return f"<div class=renders><h3>Volume rendering</h3>{figures}<p class=note>{note}</p></div>"


def case_section(
    label: str,
    case: ReportCase,
    row: Mapping[str, Any],
    metrics: Sequence[str],
    renderings: str,
    place: int,
) -> str:
    """The section of a case: ``label`` says why it is shown, ``place`` is its number in the viewer."""
    name = escape(case.case_id)
    return (
        f"<section class=case><h2>{name} <em>{escape(label)} case</em>"
        f" <button type=button class=link data-open-case={place}>show in the viewer</button></h2>"
        f"<p class=scores>{_scores(row, metrics)}</p>{_planes(case)}"
        f"{colour_bar()}<div class=foot>{_xrays(case)}{renderings}</div></section>"
    )


def floor_section(floor: Mapping[str, np.ndarray]) -> str:
    """The mean training volume, ``floor`` its slices (HU) by plane, in both windows."""
    figures = "".join(
        _captioned(grey(image, limits), plane, f"Floor: {plane}, {window} window", f"{plane}, {window}")
        for window, limits in WINDOWS.items()
        for plane, image in floor.items()
    )
    note = "<p class=note>The mean training volume, in slices through its middle.</p>"
    return f"<section><h2>The floor</h2><div class='xrays floor'>{figures}</div>{note}</section>"


def jpeg_data_uri(picture: UInt8[np.ndarray, "r c 3"]) -> str:
    """A rendering as a ``data:`` URI: smooth shades, which JPEG keeps at a tenth of a PNG's size."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def error_data_uri(error: Num[np.ndarray, "r c"], limit: float) -> str:
    """A signed error as a ``data:`` URI: 255 colours by palette, a third of a full-colour PNG's size."""
    levels = np.round(127 + 127 * np.clip(np.asarray(error, np.float32) / limit, -1, 1)).astype(np.uint8)
    picture = Image.fromarray(levels).convert("L")
    picture.putpalette(error_colours((np.arange(256)[None] - 127) / 127, 1.0)[0].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _scores(row: Mapping[str, Any], metrics: Sequence[str]) -> str:
    scores = [(metric, number(row.get(metric.key))) for metric in map(metric_of, metrics)]
    texts = [
        f"{escape(metric.title)} {value:.{metric.digits}f}" for metric, value in scores if value is not None
    ]
    return " · ".join(texts[:_MOST_SCORES])


def _planes(case: ReportCase) -> str:
    centre = bone_centre(case.truth)
    truth, made = orthoslices(case.truth, centre), orthoslices(case.reconstruction, centre)
    name = escape(case.case_id)
    lines = ["<span></span>", *(f"<span class=col>{text}</span>" for text in _column_titles())]
    for axis, plane in enumerate(PLANES):
        position = f"slice {centre[axis] + 1} of {case.truth.shape[axis]}"
        lines.append(f"<div class=row><b>{plane.capitalize()}</b><br>{position}</div>")
        for window, limits in WINDOWS.items():
            for what, image in (("truth", truth[plane]), ("reconstruction", made[plane])):
                lines.append(figure(grey(image, limits), plane, f"{name}: {plane} {what}, {window} window"))
        error = np.asarray(made[plane], np.float32) - np.asarray(truth[plane], np.float32)
        lines.append(error_figure(error, ERROR_LIMIT, f"{name}: {plane} error"))
    return f"<div class=scroll><div class=grid>{''.join(lines)}</div></div>"


def _column_titles() -> list[str]:
    titles = []
    for window, (low, high) in WINDOWS.items():
        limits = f"<small>{window}, {low:g} to {high:g} HU</small>"
        titles += [f"Truth{limits}", f"Reconstruction{limits}"]
    return [*titles, "Error<small>reconstruction − truth</small>"]


def _xrays(case: ReportCase) -> str:
    figures = "".join(
        _reprojected(case, view) if view in case.reprojections else _given(case, view) for view in case.xrays
    )
    note = (
        "<p class=note>Line integrals, given and re-projected on one scale; difference: re-projected − given,"
        f" blue to red for ±{XRAY_ERROR_LIMIT:g} (about 23 mm of water).</p>"
        if case.reprojections
        else ""
    )
    title = "Input X-rays and re-projections" if case.reprojections else "Input X-rays"
    kind = "xrays threes" if case.reprojections else "xrays"
    return f"<div class='{kind}'><h3>{title}</h3>{figures}{note}</div>"


def _given(case: ReportCase, view: str) -> str:
    picture = grey(display_xray(case.xrays[view]), (-1.0, 1.0))
    return _captioned(picture, view, f"{escape(case.case_id)}: {view} X-ray", view)


def _reprojected(case: ReportCase, view: str) -> str:
    name, both = escape(case.case_id), case.reprojections[view]
    given, made = display_xray(both.stored), display_xray(both.image)
    scale = (0.0, max(float(given.max()), 1e-6))
    difference = np.asarray(made, np.float32) - np.asarray(given, np.float32)
    return (
        _captioned(grey(given, scale), view, f"{name}: {view} X-ray", f"{view}, given")
        + _captioned(grey(made, scale), view, f"{name}: {view} re-projection", f"{view}, re-projected")
        + f"<div>{error_figure(difference, XRAY_ERROR_LIMIT, f'{name}: {view} X-ray difference')}"
        f"<p>{view.capitalize()}, difference</p></div>"
    )


def _captioned(image: np.ndarray, plane: str, alt: str, caption: str) -> str:
    return f"<div>{figure(image, plane, alt)}<p>{escape(caption.capitalize())}</p></div>"


def figure(image: np.ndarray, plane: str, alt: str) -> str:
    """A grey picture with the patient's sides marked; ``alt`` must already be escaped."""
    left, right = EDGES[plane]
    return f'<figure><img src="{png_data_uri(image)}" alt="{alt}"><i>{left}</i><i>{right}</i></figure>'


def error_figure(error: np.ndarray, limit: float, alt: str) -> str:
    """A signed error in colour, full at ``limit``; ``alt`` must already be escaped."""
    # On a light error map letters would hide pixels and say no more than those on its neighbours.
    return f'<figure><img src="{error_data_uri(error, limit)}" alt="{alt}"></figure>'


def colour_bar() -> str:
    """What the colours of error maps stand for."""
    stops = ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in ERROR_COLOURS)
    low, high = f"−{ERROR_LIMIT:g} HU or less<br>too low", f"+{ERROR_LIMIT:g} HU or more<br>too high"
    return (
        f"<div class=bar><h3>Error</h3><div style='background:linear-gradient(90deg,{stops})'></div>"
        f"<p><span>{low}</span><span>0</span><span>{high}</span></p></div>"
    )
