"""A case in pictures: three planes with error maps, X-rays with re-projections, and volume renderings."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    ERROR_LIMIT,
    PLANES,
    WINDOWS,
    bone_centre,
    display_xray,
    edges,
    error_colours,
    grey,
    named,
    orthoslices,
    png_data_uri,
)

XRAY_ERROR_LIMIT = 0.5
"""Differences of this much line integral (about 23 mm of water) and more get the full colour."""

MIN_RENDERED = 32
"""Voxels per side from which on surfaces show anything; smaller volumes are not rendered."""

_MOST_SCORES = 8  # in the line under a case's name


XRAY_NOTE = (
    "Line integrals, given and re-projected on one scale; difference: re-projected − given, blue to red for "
    f"±{XRAY_ERROR_LIMIT:g} (about 23 mm of water)."
)
RENDER_NOTE = f"Bone from {BONE_HU:g} HU in ivory, metal from {METAL_HU:g} HU in red, also where bone hides it."


@dataclass(frozen=True)
class Picture:
    """A picture of a page: ``data:`` URI, alternative text and caption.

    sides: the patient's at its left and right edge. aspect: width/height for CSS, "" where pixels are square.
    """

    uri: str
    alt: str
    caption: str = ""
    sides: tuple[str, ...] = ()
    aspect: str = ""
    smooth: bool = False


@dataclass(frozen=True)
class ReportCase:
    """One case to show.

    truth, reconstruction: HU [D, H, W] of any numeric type. spacing: (x, y, z) mm. xrays: the X-rays that the model was
    given, by view, in [-1, 1]. reprojections: of views that were projected again.
    half_width: HU from the middle of the interval to its end, or the standard deviation of draws; None: unknown.
    """

    case_id: str
    truth: Num[np.ndarray, "d h w"]
    reconstruction: Num[np.ndarray, "d h w"]
    spacing: tuple[float, float, float]
    xrays: Mapping[str, np.ndarray]
    reprojections: Mapping[str, ViewResidual] = field(default_factory=dict)
    half_width: Num[np.ndarray, "d h w"] | None = None


class Renderer:
    """Renders cases; after the first failure none, and ``failure`` gives the reason, once for the whole report."""

    def __init__(self) -> None:
        self.failure = ""

    def pictures(self, case: ReportCase) -> list[Picture]:
        """Truth and reconstruction from front and side; none where rendering fails."""
        if min(case.truth.shape) < MIN_RENDERED:
            self.failure = f"volumes of fewer than {MIN_RENDERED} voxels a side show no surfaces worth drawing."
        if self.failure:
            return []
        try:
            rendered = render_case(case.truth, case.reconstruction, case.spacing)
        except RenderingUnavailable as reason:
            self.failure = f"{reason}."
            return []
        return [
            Picture(
                jpeg_data_uri(rendered[what][view]),
                f"{case.case_id}: {what} rendered from the {view}",
                f"{what.capitalize()}, {view}",
                smooth=True,
            )
            for view in ("front", "side")
            for what in ("truth", "reconstruction")
        ]


def case_section(
    label: str, case: ReportCase, row: Mapping[str, Any], metrics: Sequence[str], renderings: Sequence[Picture]
) -> dict[str, Any]:
    """The section of a case for the template: all slices with errors, X-rays, renderings.

    label: the reason why it is shown. row: its line of per_case.csv.
    """
    centre = bone_centre(case.truth)
    truth, made = orthoslices(case.truth, centre), orthoslices(case.reconstruction, centre)
    rows = []
    for axis, plane in enumerate(PLANES):
        pictures = [
            picture(grey(image, limits), plane, f"{case.case_id}: {plane} {what}, {window} window", case.spacing)
            for window, limits in WINDOWS.items()
            for what, image in (("truth", truth[plane]), ("reconstruction", made[plane]))
        ]
        error = np.asarray(made[plane], np.float32) - np.asarray(truth[plane], np.float32)
        aspect = pixel_aspect(plane, error.shape, case.spacing)
        pictures.append(error_picture(error, ERROR_LIMIT, f"{case.case_id}: {plane} error", aspect=aspect))
        position = f"slice {centre[axis] + 1} of {case.truth.shape[axis]}"
        rows.append({"plane": plane.capitalize(), "position": position, "pictures": pictures})
    headings = [
        (what, f"{window}, {low:g} to {high:g} HU")
        for window, (low, high) in WINDOWS.items()
        for what in ("Truth", "Reconstruction")
    ]
    return {
        "name": case.case_id,
        "label": label,
        "scores": _scores(row, metrics),
        "columns": [*headings, ("Error", "reconstruction − truth")],
        "rows": rows,
        "xrays": [each for view in case.xrays for each in _xrays(case, view)],
        "xrays_title": "Input X-rays and re-projections" if case.reprojections else "Input X-rays",
        "reprojected": bool(case.reprojections),
        "renderings": renderings,
    }


def first_pictures(case: ReportCase, window: str = "bone") -> list[Picture]:
    """The pictures of the first screen: each X-ray, then three planes of the reconstruction and of the truth."""
    centre, limits = bone_centre(case.truth), WINDOWS[window]
    pictures = [_given(case, view, ", first screen") for view in case.xrays]
    for what, volume in (("reconstruction", case.reconstruction), ("truth", case.truth)):
        for plane, image in orthoslices(volume, centre).items():
            alt = f"{case.case_id}: {plane} {what}, first screen"
            pictures.append(
                picture(grey(image, limits), plane, alt, case.spacing, caption=f"{what.capitalize()}, {plane}")
            )
    return pictures


def floor_pictures(floor: Mapping[str, np.ndarray]) -> list[Picture]:
    """The mean training volume, ``floor`` its slices (HU) by plane, in both windows."""
    return [
        picture(
            grey(image, limits), plane, f"Floor: {plane}, {window} window", caption=f"{plane.capitalize()}, {window}"
        )
        for window, limits in WINDOWS.items()
        for plane, image in floor.items()
    ]


def picture(
    image: UInt8[np.ndarray, "r c"],
    plane: str,
    alt: str,
    spacing: tuple[float, float, float] | None = None,
    caption: str = "",
) -> Picture:
    """A grey picture with the patient's sides marked. plane: see `edges`. spacing: (x, y, z) mm of a slice's volume."""
    aspect = pixel_aspect(plane, image.shape, spacing) if spacing else ""
    return Picture(png_data_uri(image), alt, caption, edges(plane), aspect)


def error_picture(
    error: Num[np.ndarray, "r c"], limit: float, alt: str, caption: str = "", aspect: str = ""
) -> Picture:
    """A signed error in colour, full at ``limit``, without letters, which would hide pixels of a light picture."""
    return Picture(error_data_uri(error, limit), alt, caption, aspect=aspect)


def pixel_aspect(plane: str, shape: tuple[int, ...], spacing: tuple[float, float, float]) -> str:
    """CSS aspect ratio of a slice [rows, columns] in mm; "" where pixels are square, as browsers draw them."""
    x, y, z = spacing
    wide, high = {"axial": (x, y), "coronal": (x, z), "sagittal": (y, z)}[plane]
    if math.isclose(wide, high, rel_tol=1e-3):
        return ""
    return f"{shape[1] * wide:g}/{shape[0] * high:g}"


def jpeg_data_uri(image: UInt8[np.ndarray, "r c 3"]) -> str:
    """A rendering as a ``data:`` URI: smooth shades, which JPEG keeps at a tenth of a PNG's size."""
    return _data_uri(Image.fromarray(image), "jpeg", quality=88)


def error_data_uri(error: Num[np.ndarray, "r c"], limit: float) -> str:
    """A signed error as a ``data:`` URI: 255 colours by palette, a third of a full-colour PNG's size."""
    levels = np.round(127 + 127 * np.clip(np.asarray(error, np.float32) / limit, -1, 1)).astype(np.uint8)
    image = Image.fromarray(levels).convert("L")
    image.putpalette(error_colours((np.arange(256)[None] - 127) / 127, 1.0)[0].tobytes())
    return _data_uri(image, "png")


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _scores(row: Mapping[str, Any], metrics: Sequence[str]) -> str:
    scores = [(metric, number(row.get(metric.key))) for metric in map(metric_of, metrics)]
    texts = [f"{metric.title} {metric.plain(value)}" for metric, value in scores if value is not None]
    return " · ".join(texts[:_MOST_SCORES])


def _given(case: ReportCase, view: str, suffix: str = "") -> Picture:
    alt = f"{case.case_id}: {view} X-ray{suffix}"
    image = grey(display_xray(case.xrays[view]), (-1.0, 1.0))
    return picture(image, view, alt, caption=f"{named(view)} X-ray")


def _xrays(case: ReportCase, view: str) -> list[Picture]:
    """The X-ray, and where it was re-projected also that and the difference, on one scale."""
    if view not in case.reprojections:
        return [_given(case, view)]
    name, title, both = f"{case.case_id}: {view}", named(view), case.reprojections[view]
    given, made = display_xray(both.stored), display_xray(both.image)
    scale = (0.0, max(float(given.max()), 1e-6))
    difference = np.asarray(made, np.float32) - np.asarray(given, np.float32)
    return [
        picture(grey(given, scale), view, f"{name} X-ray", caption=f"{title}, given"),
        picture(grey(made, scale), view, f"{name} re-projection", caption=f"{title}, re-projected"),
        error_picture(difference, XRAY_ERROR_LIMIT, f"{name} X-ray difference", f"{title}, difference"),
    ]
