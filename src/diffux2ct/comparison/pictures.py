"""The pictures of a comparison's page: distributions, cases, and the slice viewer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Num
from markupsafe import Markup

from diffux2ct.comparison.runs import ScoredRun
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import Metric, metric_of
from diffux2ct.evaluation.report.cases import Picture, error_picture, picture, pixel_aspect
from diffux2ct.evaluation.report.plots import distributions
from diffux2ct.evaluation.report.report import PLOT_NOTE, VIEWER_BUDGET, choose_cases, ranking_metric, score_text
from diffux2ct.evaluation.report.tables import number
from diffux2ct.viz.slices import ERROR_LIMIT, PLANES, WINDOWS, bone_centre, grey, orthoslices
from diffux2ct.viz.viewer import PackedCase, Pane, next_allowance, pack_case, viewer_html

_WIDEST = {4: 140}
"""Pixels of a picture by the number of columns, so that two planes stand side by side on a page of 1480."""


@dataclass(frozen=True)
class ComparedCase:
    """truth, and each run's reconstruction by the run's name: HU [D, H, W] of one shape. spacing: (x, y, z) mm."""

    case_id: str
    truth: Num[np.ndarray, "d h w"]
    reconstructions: Mapping[str, Num[np.ndarray, "d h w"]]
    spacing: tuple[float, float, float]


def compared_section(label: str, case: ComparedCase, scores: Mapping[str, str]) -> dict[str, Any]:
    """The section of a case for the template: truth and runs side by side, a grid per plane.

    label: the reason why it is shown. scores: a line under each run's name.
    """
    centre = bone_centre(case.truth)
    volumes = {"Truth": case.truth, **case.reconstructions}
    slices = [orthoslices(hu, centre) for hu in volumes.values()]
    planes = []
    for axis, plane in enumerate(PLANES):
        names = ["truth", *case.reconstructions]
        images = [(f"{case.case_id}: {plane} {name}", each[plane]) for name, each in zip(names, slices, strict=True)]
        planes.append(
            {
                "title": plane.capitalize(),
                "position": f"slice {centre[axis] + 1} of {case.truth.shape[axis]}",
                "rows": _rows(images, plane, case.spacing),
            }
        )
    heads = [(name, scores.get(name, "")) for name in volumes]
    widest = _WIDEST.get(len(heads), 192)
    return {"name": case.case_id, "label": label, "planes": planes, "heads": heads, "widest": widest}


Cells = list[Picture | None]


def _rows(
    images: Sequence[tuple[str, np.ndarray]], plane: str, spacing: tuple[float, float, float]
) -> list[tuple[str, str, Cells]]:
    """A plane's rows: title, what it shows, pictures. images: (alternative text, HU), the truth's first."""
    rows: list[tuple[str, str, Cells]] = []
    for window, (low, high) in WINDOWS.items():
        pictures: Cells = [
            picture(grey(image, (low, high)), plane, f"{alt}, {window} window", spacing) for alt, image in images
        ]
        rows.append((window.capitalize(), f"{low:g} to {high:g} HU", pictures))
    truth = np.asarray(images[0][1], np.float32)
    aspect = pixel_aspect(plane, truth.shape, spacing)
    errors: Cells = [
        error_picture(np.asarray(image, np.float32) - truth, ERROR_LIMIT, f"{alt}, error", aspect=aspect)
        for alt, image in images[1:]
    ]
    return [*rows, ("Error", "reconstruction − truth", [None, *errors])]


NUM_PICTURED = 3
"""Cases with pictures: best, median and worst. Further ones are in the viewer alone, or 20 would exceed 25 MB."""

Load = Callable[[str], ComparedCase]
"""Loads a case by its name; UserError where its volumes cannot be read or compared."""


@dataclass(frozen=True)
class Pictures:
    """For the page: notes, plots, the slice viewer and how its cases were ranked (all HTML or text), and sections."""

    lines: tuple[str, ...] = ()
    plots: str = ""
    viewer: str = ""
    ranking: str = ""
    cases: tuple[dict[str, Any], ...] = ()
    plot_note: str = PLOT_NOTE


NO_PICTURES = Pictures()


def distribution_plots(runs: Sequence[ScoredRun], metrics: Sequence[Metric]) -> Markup:
    """A plot per metric, a lane per run and one for the floor; empty where no run has a value per case.

    ``runs``: of one test set, so that they have the same cases.
    """
    rows = {run.name: case_rows(run) for run in runs if run.cases is not None}
    # The floor is the same for all, but runs may differ in their metrics and in the order of their cases.
    by_case: dict[str, dict[str, Any]] = {}
    for row in (row for lane in rows.values() for row in lane):
        known = {key: value for key, value in row.items() if isinstance(value, str) or number(value) is not None}
        by_case[row["case_id"]] = known | by_case.get(row["case_id"], {})
    floor = list(by_case.values())
    return distributions(rows, floor, [metric.key for metric in metrics])


def case_rows(run: ScoredRun) -> list[dict[str, Any]]:
    """per_case.csv, a dict a line; NaN where a cell is empty. No lines where there is no such file."""
    if run.cases is None:
        return []
    names = list(run.cases.scores)
    columns = [run.cases.scores[name].tolist() for name in names]
    return [
        {"case_id": case, **dict(zip(names, values, strict=True))}
        for case, *values in zip(run.cases.cases, *columns, strict=True)
    ]


def case_sections(
    runs: Sequence[ScoredRun], ranked_by: ScoredRun, chosen: Sequence[tuple[str, str]], load: Load
) -> Pictures:
    """The viewer, then best, median and worst case in pictures.

    runs: those in the cases that ``load`` returns. ranked_by: the run that cases were chosen by, see `chosen_cases`.
    chosen: (label, case) in order, loaded one by one, so that one at a time is in memory.
    """
    sections: list[dict[str, Any]] = []
    packed: list[PackedCase] = []
    failed: list[str] = []
    panes = [Pane("truth", "Truth", "truth")]
    panes += [Pane(f"run{k}", run.name, f"run{k}") for k, run in enumerate(runs)]
    for place, (label, name) in enumerate(chosen):
        try:
            case = load(name)
        except UserError as error:
            failed.append(str(error).splitlines()[0])
            continue
        made = {f"run{k}": case.reconstructions[run.name] for k, run in enumerate(runs)}
        used = sum(each.size for each in packed)
        allowance = next_allowance(VIEWER_BUDGET, used, len(chosen) - place, case.truth.size, len(made) + 1)
        if len(sections) < NUM_PICTURED:
            sections.append({**compared_section(label, case, _scores(runs, name)), "place": len(packed)})
        packed.append(pack_case(name, label, {"truth": case.truth, **made}, case.spacing, allowance))
    if not packed:
        return Pictures(tuple(failed))
    viewer = viewer_html(packed, panes, errors_on_demand=True)
    return Pictures(tuple(failed), viewer=viewer, ranking=_ranking(ranked_by), cases=tuple(sections))


def chosen_cases(run: ScoredRun, count: int) -> list[tuple[str, str]]:
    """(label, case): best, median and worst of a run by PSNR3D, then others in order, up to ``count``."""
    rows = case_rows(run)
    return [(label, rows[index]["case_id"]) for label, index in choose_cases(rows, count)] if rows else []


def _ranking(run: ScoredRun) -> str:
    key = ranking_metric(case_rows(run))
    by = f"by {metric_of(key).title} of {run.name}" if key else f"in the order of {run.name}"
    return f"Best, median and worst case: {by}."


def _scores(runs: Sequence[ScoredRun], case: str) -> dict[str, str]:
    """By run, its score of this case in the metric that ranks cases."""
    scores = {}
    for run in runs:
        rows = case_rows(run)
        row = next((row for row in rows if row["case_id"] == case), {})
        scores[run.name] = score_text(ranking_metric(rows) if rows else None, row)
    return scores
