"""The report's section on uncertainty: error against spread as inline SVG, and maps of half the interval's width."""

import math
from collections.abc import Mapping
from typing import Any

from diffux2ct.evaluation.report.cases import Picture, ReportCase, error_picture, pixel_aspect
from diffux2ct.viz.slices import ERROR_LIMIT, bone_centre, orthoslices

_LOW, _HIGH = 1.0, 2000.0  # HU, of both axes
_SIDE, _LEFT, _TOP = 260, 46, 12  # pixels: of the plot's square, and its margins
TICKS = (1.0, 10.0, 100.0, 1000.0)


def uncertainty_section(about: Mapping[str, Any]) -> dict[str, Any]:
    """Plot and notes for the template. about: the entry ``uncertainty`` of metrics.json; empty without one."""
    bins = about.get("error_against_spread") or []
    if not bins:
        return {}
    return {
        "points": [
            {
                "x": _x(each["spread"]),
                "y": _y(each["error"]),
                "radius": round(3 + 9 * math.sqrt(each["share"]), 1),
                "text": f"spread {each['spread']:.1f} HU, error {each['error']:.1f} HU, {each['share']:.1%} of voxels",
            }
            for each in bins
        ],
        "ticks": [{"x": _x(tick), "y": _y(tick), "text": f"{tick:g}"} for tick in TICKS],
        "frame": {"left": _LEFT, "top": _TOP, "right": _LEFT + _SIDE, "bottom": _TOP + _SIDE},
        "notes": _notes(about),
        "map": "the standard deviation (not calibrated)" if about.get("calibration") is None else "half the interval",
        "limit": f"{ERROR_LIMIT:g}",
    }


def width_pictures(case: ReportCase) -> list[Picture]:
    """The half width of a case's interval, or the standard deviation, through the middle of the true bone, if known."""
    if case.half_width is None:
        return []
    planes = orthoslices(case.half_width, bone_centre(case.truth))
    return [
        error_picture(
            image,
            ERROR_LIMIT,
            f"{case.case_id}: {plane} half width of the interval, or standard deviation",
            plane.capitalize(),
            pixel_aspect(plane, image.shape, case.spacing),
        )
        for plane, image in planes.items()
    ]


def _x(hu: float) -> float:
    return round(_LEFT + _SIDE * _place(hu), 1)


def _y(hu: float) -> float:
    return round(_TOP + _SIDE * (1 - _place(hu)), 1)


def _place(hu: float) -> float:
    """0 to 1 on the logarithmic axis."""
    return math.log(min(max(hu, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)


def _notes(about: Mapping[str, Any]) -> list[str]:
    ratio = about.get("spread_over_error")
    notes = [f"{about['num_samples']} draws a case; {about['reached_by_rays']:.0%} of the voxels are reached by rays."]
    notes += [] if ratio is None else [f"Spread over error, root mean squares of all these voxels: {ratio:.2f}."]
    own = about.get("calibration")
    if own is None:
        return [*notes, f"Intervals are not calibrated: {about.get('note')}."]
    rule = "conformal risk control" if own["method"] == "crc" else f"RCPS, delta {own['delta']:g}"
    patients = f"{own['num_patients']['voxels']} patients of {own['dataset']} {own['split']}"
    formula = f"mean ± {own['scales']['voxels']:.2f} (standard deviation + {own['floor']:g} HU)"
    notes.append(f"Intervals: {formula}, for {1 - own['alpha']:.0%} of a patient's voxels by {rule} on {patients}.")
    return notes + ([about["note"]] if about.get("note") else [])
