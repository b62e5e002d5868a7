"""The evaluation report: one HTML file with numbers, floors and pictures that asks nothing of the network."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.report.cases import Renderer, ReportCase, case_section, floor_section
from diffux2ct.evaluation.report.page import SCRIPT, STYLE
from diffux2ct.evaluation.report.plots import distributions
from diffux2ct.evaluation.report.tables import case_table, facts, summary_table, values
from diffux2ct.viz.slices import orthoslices
from diffux2ct.viz.viewer import PackedCase, next_allowance, pack_case, viewer_html
from diffux2ct.viz.viewer_page import VIEWER_SCRIPT, VIEWER_STYLE

__all__ = ["ReportCase", "choose_cases", "floor_panels", "write_report"]

VIEWER_BUDGET = 16_000_000
"""Bytes of page for the viewer's volumes. Pictures of 20 cases at 128^3 take about 6 MB more, and 25 MB is the aim."""

FLOOR_SENTENCE = (
    "The floor is what you score without looking at the X-rays: the voxelwise mean of all training volumes is"
    " given as the answer to every case. A method that makes use of its X-rays scores better than that."
)

CONTROLS = {
    "shuffled": "Control experiment: every case was given another's X-rays. Scores should fall to the floor.",
    "swapped": "Control experiment: frontal and lateral X-ray were exchanged. Scores should fall.",
}


def floor_panels(mean_volume: Num[np.ndarray, "d h w"]) -> dict[str, np.ndarray]:
    """Slices of the mean training volume (HU) through its middle."""
    d, h, w = mean_volume.shape
    return orthoslices(mean_volume, (d // 2, h // 2, w // 2))


def choose_cases(rows: Sequence[Mapping[str, Any]], count: int) -> list[tuple[str, int]]:
    """Up to ``count`` rows, a label and a number each: the best, median and worst by PSNR3D, then others in order.

    See `ranking_metric`; a metric ranks in its own direction, and without any the order of the rows counts.
    """
    by = ranking_metric(rows)
    order = list(range(len(rows)))
    if by is not None:
        column = [value for _, value in values(rows, by)]
        order.sort(key=lambda index: column[index], reverse=metric_of(by).sign >= 0)
    labels: dict[int, str] = {order[0]: "best" if len(rows) > 1 else "only"}
    labels.setdefault(order[-1], "worst")
    labels.setdefault(order[len(order) // 2], "median")
    first = [order[0], order[len(order) // 2], order[-1]]
    chosen = list(dict.fromkeys([*first, *range(len(rows))]))[:count]
    return [(labels.get(index, "further"), index) for index in chosen]


def ranking_metric(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """PSNR3D; without it the first metric that has a floor and that every case has; None without any such."""
    keys = [key for key in ("psnr3d", *rows[0]) if key == "psnr3d" or f"floor_{key}" in rows[0]]
    return next((key for key in keys if len(list(values(rows, key))) == len(rows)), None)


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    cases: Sequence[tuple[str, Callable[[], ReportCase]]],
    floor: Mapping[str, np.ndarray],
    title: str,
) -> None:
    """Write the report.

    Args:
        summary: the content of metrics.json. ``summary["run"]``, where given, heads the page; ``["floor"]`` has the
            floor of the metrics that have one, ``["intervals"]`` {metric: [low, high]}, ``["unavailable"]``
            {metric: "reason; command"}.
        rows: the content of per_case.csv; a metric that a case lacks is absent, None or "".
        metrics: the keys to show, each in ``summary``, those of single cases in ``rows`` too.
        cases: those to picture, each with a label ("best", ...) and a function that loads it. They are called one by
            one, so that one case at a time is in memory.
        floor: slices of the mean training volume, see `floor_panels`.
    """
    heading = escape(str(summary.get("run", title)))
    sections, packed, renderer = _case_sections(rows, metrics, cases)
    plots = distributions(rows, metrics)
    parts = [
        "<header><p class=kicker>DiffuX2CT · evaluation</p>",
        f"<h1>{heading}</h1>{facts(summary, metrics)}</header>",
        _control(summary),
        f"<section><h2>Summary</h2>{summary_table(summary, rows, metrics)}",
        f"<p class=note>{escape(FLOOR_SENTENCE)}</p></section>",
        f"<section><h2>Distributions</h2>{plots}<p class=note>{PLOT_NOTE}</p></section>" if plots else "",
        f"<section><h2>Cases</h2>{case_table(rows, metrics)}",
        "<p class=note>Click a heading to sort. Small numbers are the floor of the same case.</p></section>",
        f"<section class=viewer-section><h2>Slice viewer</h2>{viewer_html(packed)}</section>"
        if packed
        else "",
        f"<p class=note>No volume rendering: {escape(renderer.failure)}</p>" if renderer.failure else "",
        *sections,
        floor_section(floor) if cases else "",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{heading} · evaluation</title><style>{STYLE}{VIEWER_STYLE}</style></head>\n<body><main>"
        + "\n".join(parts)
        + f"</main><script>{SCRIPT}{VIEWER_SCRIPT}</script></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


PLOT_NOTE = (
    "A dot is a case, the box holds the middle half of them, the line is the median. Floor: the mean volume."
)


def _control(summary: Mapping[str, Any]) -> str:
    text = CONTROLS.get(str(summary.get("xray_source")), "")
    return f"<p class=control>{escape(text)}</p>" if text else ""


def _case_sections(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    cases: Sequence[tuple[str, Callable[[], ReportCase]]],
) -> tuple[list[str], list[PackedCase], Renderer]:
    by_name = {row["case_id"]: row for row in rows}
    sections: list[str] = []
    packed: list[PackedCase] = []
    renderer = Renderer()

    def add(place: int, label: str, case: ReportCase) -> None:
        used, remaining = sum(each.size for each in packed), len(cases) - place
        allowance = next_allowance(VIEWER_BUDGET, used, remaining, case.truth.size)
        volumes = {"truth": case.truth, "reconstruction": case.reconstruction}
        packed.append(pack_case(case.case_id, label, volumes, case.spacing, allowance))
        renderings = renderer.html(case)
        sections.append(case_section(label, case, by_name[case.case_id], metrics, renderings, place))

    for place, (label, load) in enumerate(cases):
        add(
            place, label, load()
        )  # no name here holds the case, so that it is gone when the next one is loaded
    return sections, packed, renderer
