"""The evaluation report: one HTML file with pictures, numbers and floors that works from disk, without a network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.planted.family import PlantedObjects
from diffux2ct.evaluation.report.cases import (
    RENDER_NOTE,
    XRAY_NOTE,
    Renderer,
    ReportCase,
    case_section,
    first_pictures,
    floor_pictures,
)
from diffux2ct.evaluation.report.planted import planted_section
from diffux2ct.evaluation.report.plots import distributions
from diffux2ct.evaluation.report.tables import (
    case_table,
    facts,
    headline_figures,
    number,
    subtitle,
    summary_table,
    values,
)
from diffux2ct.evaluation.report.uncertainty import uncertainty_section, width_pictures
from diffux2ct.viz.pages import templates
from diffux2ct.viz.slices import orthoslices
from diffux2ct.viz.viewer import PackedCase, next_allowance, pack_case, viewer_html

__all__ = ["ReportCase", "choose_cases", "floor_panels", "write_report"]

VIEWER_BUDGET = 16_000_000
"""Bytes of page for the viewer's volumes. Pictures of 20 cases at 128^3 take about 6 MB more, and 25 MB is the aim."""

FLOOR_SENTENCE = (
    "The floor is the score without any X-ray: that of the voxelwise mean of all training volumes, the same for every"
    " case. A method that makes use of its X-rays scores better than that."
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


def score_text(key: str | None, row: Mapping[str, Any]) -> str:
    """Title and value of a metric of a case: "PSNR3D 20.50 dB"; "" where it has none."""
    value = None if key is None else number(row.get(key))
    return "" if key is None or value is None else f"{metric_of(key).title} {metric_of(key).text(value)}"


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    cases: Sequence[tuple[str, Callable[[], ReportCase]]],
    floor: Mapping[str, np.ndarray],
    title: str,
    planted: PlantedObjects | None = None,
) -> None:
    """Write the report: X-rays, reconstruction and truth with headline figures first, all else folded below.

    summary: the content of metrics.json; ``summary["run"]`` heads the page. rows: of per_case.csv; a missing score is
    absent, None or "". metrics: the keys to show, each in ``summary``, those of single cases in ``rows`` too. cases: to
    picture, each with a label ("best", ...) and a function that loads it; one at a time is in memory. floor: slices of
    the mean training volume, see `floor_panels`. planted: objects that were put into the cases.
    """
    sections, packed, first, maps, renderer = [], [], {}, [], Renderer()
    labels = [label for label, _ in cases]
    # The median case stands on the first screen: neither lucky nor failed.
    first_label = next((label for label in ("median", *labels) if label in labels), "")
    by_name = {row["case_id"]: row for row in rows}

    def add(place: int, label: str, case: ReportCase) -> None:
        row = by_name[case.case_id]
        packed.append(_packed(label, case, packed, len(cases) - place))
        if label == first_label and not first:
            first.update(pictures=first_pictures(case), about=_first_note(label, case.case_id, rows, row))
        section = case_section(label, case, row, metrics, renderer.pictures(case))
        sections.append({**section, "place": place})
        if pictures := width_pictures(case):
            maps.append({"name": case.case_id, "pictures": pictures})

    for place, (label, load) in enumerate(cases):
        # No name here holds the case, so that it is freed before the next one is loaded.
        add(place, label, load())
    page = templates("diffux2ct.evaluation.report", "diffux2ct.viz").get_template("report.html")
    text = page.render(
        heading=str(summary.get("run", title)),
        subtitle=subtitle(summary),
        control=CONTROLS.get(str(summary.get("xray_source")), ""),
        first=first,
        cards=headline_figures(summary, rows, metrics),
        floor_sentence=FLOOR_SENTENCE,
        viewer=viewer_html(packed) if packed else "",
        summary=summary_table(summary, rows, metrics),
        plots=distributions({"run": rows}, rows, metrics),
        plot_note=PLOT_NOTE,
        uncertainty=uncertainty_section(summary.get("uncertainty") or {}),
        width_maps=maps,
        planted=planted_section(summary, rows, planted),
        case_table=case_table(rows, metrics),
        sections=sections,
        xray_note=XRAY_NOTE,
        render_note=RENDER_NOTE,
        render_failure=renderer.failure,
        floor=floor_pictures(floor),
        facts=facts(summary, metrics),
    )
    path.write_text(text, encoding="utf-8")


PLOT_NOTE = "A dot is a case, the box holds the middle half of them, the line is the median. Floor: the mean volume."


def _first_note(label: str, case_id: str, rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
    score = score_text(ranking_metric(rows), row)
    score = f" ({score})" if score else ""
    which = {"only": "The only case", "further": "A case"}.get(label, f"The {label} case of those scored")
    return f"{which}: {case_id}{score}, bone window, slices through the middle of its bone."


def _packed(label: str, case: ReportCase, before: Sequence[PackedCase], remaining: int) -> PackedCase:
    used = sum(each.size for each in before)
    allowance = next_allowance(VIEWER_BUDGET, used, remaining, case.truth.size)
    volumes = {"truth": case.truth, "reconstruction": case.reconstruction}
    return pack_case(case.case_id, label, volumes, case.spacing, allowance)
