"""The evaluation report: one HTML file with numbers, floors and pictures that asks nothing of the network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from diffux2ct.evaluation.report_page import SCRIPT, STYLE
from diffux2ct.viz.slices import (
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
    upscale,
)

ABOUT = {
    "psnr": ("PSNR", "dB", "per slice, mean over three axes; a slice without any error counts as 100 dB"),
    "psnr3d": ("PSNR3D", "dB", "one mean squared error per volume; the number to compare methods by"),
    "ssim": ("SSIM", "", "per slice, 7×7 window, mean over three axes"),
    "ssim3d": ("SSIM3D", "", "7×7×7 window"),
}
"""Title, unit and a line of explanation for the metrics that have one; others appear under their name."""

LABELS = {"num_cases": "cases", "xray_source": "X-rays"}
"""Header entries that read better under another name than their key in metrics.json."""

FLOOR_SENTENCE = (
    "The floor is what you score without looking at the X-rays: the voxelwise mean of all training volumes is"
    " given as the answer to every case. A method that makes use of its X-rays scores above it."
)

CONTROLS = {
    "shuffled": "Control experiment: every case was given another's X-rays. Scores should fall to the floor.",
    "swapped": "Control experiment: frontal and lateral X-ray were exchanged. Scores should fall.",
}


@dataclass(frozen=True)
class CasePanels:
    """What is shown of one case: three slices (HU) of truth and reconstruction, and the X-rays given."""

    case_id: str
    shape: tuple[int, int, int]
    centre: tuple[int, int, int]
    truth: dict[str, np.ndarray]
    reconstruction: dict[str, np.ndarray]
    xrays: dict[str, np.ndarray]


def case_panels(
    case_id: str,
    truth: Num[np.ndarray, "d h w"],
    reconstruction: Num[np.ndarray, "d h w"],
    xrays: Mapping[str, np.ndarray],
) -> CasePanels:
    """Cut a case's slices through the middle of its true bone. Volumes in HU, X-rays [rows, cols] in [-1, 1].

    The slices are copies, so that a long evaluation does not keep every volume alive.
    """
    centre = bone_centre(truth)
    true, made = (
        {plane: image.copy() for plane, image in orthoslices(volume, centre).items()}
        for volume in (truth, reconstruction)
    )
    shown = {view: display_xray(image).copy() for view, image in xrays.items()}
    return CasePanels(case_id, truth.shape, centre, true, made, shown)


def floor_panels(mean_volume: Num[np.ndarray, "d h w"]) -> dict[str, np.ndarray]:
    """Slices of the mean training volume (HU) through its middle."""
    d, h, w = mean_volume.shape
    return orthoslices(mean_volume, (d // 2, h // 2, w // 2))


def choose_cases(
    rows: Sequence[Mapping[str, Any]], panels: Sequence[CasePanels], count: int
) -> list[tuple[str, CasePanels]]:
    """Up to ``count`` cases with a label each: the best, median and worst by PSNR3D, then others in order.

    Without PSNR3D among the metrics the first one ranks.
    """
    by = "psnr3d" if "psnr3d" in rows[0] else next(key for key in rows[0] if f"floor_{key}" in rows[0])
    order = sorted(range(len(rows)), key=lambda index: rows[index][by], reverse=True)
    labels: dict[int, str] = {order[0]: "best" if len(rows) > 1 else "only"}
    labels.setdefault(order[-1], "worst")
    labels.setdefault(order[len(order) // 2], "median")
    first = [index for index in (order[0], order[len(order) // 2], order[-1]) if index in labels]
    chosen = list(dict.fromkeys([*first, *range(len(rows))]))[:count]
    return [(labels.get(index, "further"), panels[index]) for index in chosen]


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    cases: Sequence[tuple[str, CasePanels]],
    floor: Mapping[str, np.ndarray],
    title: str,
) -> None:
    """Write the report.

    ``summary`` is the content of metrics.json, ``rows`` that of per_case.csv, ``cases`` the cases to picture,
    each with a label ("best", ...). ``summary["run"]``, where given, heads the page.
    """
    heading = escape(str(summary.get("run", title)))
    control = CONTROLS.get(str(summary.get("xray_source")), "")
    parts = [
        "<header><p class=kicker>DiffuX2CT · evaluation</p>",
        f"<h1>{heading}</h1>{_facts(summary, metrics)}</header>",
        f"<p class=control>{escape(control)}</p>" if control else "",
        f"<section><h2>Summary</h2>{_summary_table(summary, metrics)}",
        f"<p class=note>{escape(FLOOR_SENTENCE)}</p></section>",
        f"<section><h2>Cases</h2>{_case_table(rows, metrics)}",
        "<p class=note>Click a heading to sort. Small numbers are the floor of the same case.</p></section>",
        *[_case_section(label, panels, rows, metrics) for label, panels in cases],
        _floor_section(floor) if cases else "",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{heading} · evaluation</title><style>{STYLE}</style></head>\n<body><main>"
        + "\n".join(parts)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _facts(summary: Mapping[str, Any], metrics: Sequence[str]) -> str:
    leading = ("dataset", "split", "sampler", "sampling", "seed", "num_cases", "seconds_per_volume")
    hidden = {"run", "floor", *metrics}
    items = []
    for key in [*(key for key in leading if key in summary), *(key for key in summary if key not in leading)]:
        value = summary[key]
        if key in hidden or value is None:
            continue
        text = _plain(value)
        text = text if len(text) <= 160 else text[:157] + "…"
        items.append(
            f"<div><dt>{escape(LABELS.get(key, key.replace('_', ' ')))}</dt><dd>{escape(text)}</dd></div>"
        )
    return f"<dl>{''.join(items)}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "defaults"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _digits(name: str) -> int:
    return 2 if ABOUT.get(name, ("", "", ""))[1] == "dB" else 3


def _title(name: str) -> str:
    return ABOUT[name][0] if name in ABOUT else name


def _summary_table(summary: Mapping[str, Any], metrics: Sequence[str]) -> str:
    body = []
    for name in metrics:
        value, floor, digits = summary[name], summary["floor"][name], _digits(name)
        unit, about = ABOUT.get(name, (name, "", ""))[1:]
        difference = value - floor
        side = "better" if difference > 0 else "worse"
        body.append(
            f"<tr><th scope=row>{escape(_title(name))}</th><td>{value:.{digits}f} {unit}</td>"
            f"<td>{floor:.{digits}f} {unit}</td><td class={side}>{difference:+.{digits}f} {unit}</td>"
            f"<td class=about>{escape(about)}</td></tr>"
        )
    head = "<tr><th>Metric</th><th>This run</th><th>Floor</th><th>Difference</th><th></th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class=scroll>{table}</div>"


def _case_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    columns = ["Case", "Patient", *[_title(name) for name in metrics], "Seconds"]
    head = "".join(f"<th><button type=button>{escape(column)}</button></th>" for column in columns)
    body = []
    for row in rows:
        cells = [_cell(row[key], escape(str(row[key]))) for key in ("case_id", "patient")]
        for name in metrics:
            digits = _digits(name)
            shown = f"{row[name]:.{digits}f} <small>{row[f'floor_{name}']:.{digits}f}</small>"
            cells.append(_cell(row[name], shown))
        cells.append(_cell(row["seconds"], f"{row['seconds']:.3g}"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<table id=cases><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class=scroll>{table}</div>"


def _cell(value: Any, shown: str) -> str:
    """A table cell that sorts by ``value`` whatever it shows."""
    return f"<td data-v='{escape(str(value))}'>{shown}</td>"


def _case_section(
    label: str, panels: CasePanels, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> str:
    row = next(row for row in rows if row["case_id"] == panels.case_id)
    name = escape(panels.case_id)
    scores = " · ".join(f"{escape(_title(m))} {row[m]:.{_digits(m)}f}" for m in metrics)
    columns = "".join(f"<span class=col>{text}</span>" for text in _column_titles())
    lines = []
    for axis, plane in enumerate(PLANES):
        position = f"slice {panels.centre[axis] + 1} of {panels.shape[axis]}"
        true, made = panels.truth[plane], panels.reconstruction[plane]
        lines.append(f"<div class=row><b>{plane.capitalize()}</b><br>{position}</div>")
        for window, limits in WINDOWS.items():
            for what, image in (("truth", true), ("reconstruction", made)):
                lines.append(_figure(grey(image, limits), plane, f"{name}: {plane} {what}, {window} window"))
        error = np.asarray(made, np.float32) - np.asarray(true, np.float32)
        lines.append(_figure(error_colours(error), plane, f"{name}: {plane} error"))
    views = "".join(
        _captioned(grey(image, (-1.0, 1.0)), view, f"{name}: {view} X-ray", view.capitalize())
        for view, image in panels.xrays.items()
    )
    return (
        f"<section class=case><h2>{name} <em>{escape(label)} case</em></h2><p class=scores>{scores}</p>"
        f"<div class=scroll><div class=grid><span></span>{columns}{''.join(lines)}</div></div>"
        f"<div class=foot><div class=xrays><h3>Input X-rays</h3>{views}</div>{_colour_bar()}</div></section>"
    )


def _column_titles() -> list[str]:
    titles = []
    for window, (low, high) in WINDOWS.items():
        limits = f"<small>{window}, {low:g} to {high:g} HU</small>"
        titles += [f"Truth{limits}", f"Reconstruction{limits}"]
    return [*titles, "Error<small>reconstruction − truth</small>"]


def _floor_section(floor: Mapping[str, np.ndarray]) -> str:
    figures = "".join(
        _captioned(
            grey(image, limits), plane, f"Floor: {plane}, {window} window", f"{plane.capitalize()}, {window}"
        )
        for window, limits in WINDOWS.items()
        for plane, image in floor.items()
    )
    note = "<p class=note>The mean training volume, in slices through its middle.</p>"
    return f"<section><h2>The floor</h2><div class='xrays floor'>{figures}</div>{note}</section>"


def _captioned(image: np.ndarray, plane: str, alt: str, caption: str) -> str:
    return f"<div>{_figure(image, plane, alt)}<p>{escape(caption)}</p></div>"


def _figure(image: np.ndarray, plane: str, alt: str) -> str:
    """A picture with the patient's sides marked; ``alt`` must already be escaped."""
    left, right = EDGES[plane]
    # On a light error map letters would hide pixels and say no more than those on its neighbours.
    edges = "" if image.ndim == 3 else f"<i>{left}</i><i>{right}</i>"
    return f'<figure><img src="{png_data_uri(upscale(image))}" alt="{alt}">{edges}</figure>'


def _colour_bar() -> str:
    stops = ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in ERROR_COLOURS)
    low, high = f"−{ERROR_LIMIT:g} HU or less<br>too low", f"+{ERROR_LIMIT:g} HU or more<br>too high"
    return (
        f"<div class=bar><h3>Error</h3><div style='background:linear-gradient(90deg,{stops})'></div>"
        f"<p><span>{low}</span><span>0</span><span>{high}</span></p></div>"
    )
