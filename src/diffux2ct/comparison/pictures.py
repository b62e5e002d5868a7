"""What a comparison's page shows beside its table: distributions, cases in pictures, and the slice viewer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Num

from diffux2ct.comparison.runs import ScoredRun
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import Metric, metric_of
from diffux2ct.evaluation.report.cases import colour_bar, error_figure, figure
from diffux2ct.evaluation.report.plots import compared_distributions
from diffux2ct.evaluation.report.report import PLOT_NOTE, VIEWER_BUDGET, choose_cases, ranking_metric
from diffux2ct.evaluation.report.tables import number
from diffux2ct.viz.slices import ERROR_LIMIT, PLANES, WINDOWS, bone_centre, grey, orthoslices
from diffux2ct.viz.viewer import PackedCase, Pane, next_allowance, pack_case, viewer_html

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


NUM_PICTURED = 3
"""Cases with pictures: best, median and worst. Further ones are in the viewer alone, or 20 would exceed 25 MB."""

Load = Callable[[str], ComparedCase]
"""Loads a case by its name; UserError where its volumes cannot be read or compared."""


@dataclass(frozen=True)
class Pictures:
    """HTML sections in order; ``viewer``: whether the slice viewer is among them."""

    sections: tuple[str, ...] = ()
    viewer: bool = False


NO_PICTURES = Pictures()


def distribution_section(runs: Sequence[ScoredRun], metrics: Sequence[Metric]) -> str:
    """A plot a metric, a lane a run and one for the floor; empty where no run has a value per case.

    ``runs``: of one test set, so that they have the same cases.
    """
    rows = {run.name: case_rows(run) for run in runs if run.cases is not None}
    # The floor is the same for all, but a run may lack metrics of another, or have another order of cases.
    by_case: dict[str, dict[str, Any]] = {}
    for row in (row for lane in rows.values() for row in lane):
        told = {key: value for key, value in row.items() if number_or_text(value)}
        by_case[row["case_id"]] = told | by_case.get(row["case_id"], {})
    floor = list(by_case.values())
    plots = compared_distributions(rows, floor, [metric.key for metric in metrics])
    return f"<section><h2>Distributions</h2>{plots}<p class=note>{PLOT_NOTE}</p></section>" if plots else ""


def number_or_text(value: Any) -> bool:
    """Whether a cell of per_case.csv holds something."""
    return isinstance(value, str) or number(value) is not None


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

    Args:
        runs: what ``load`` returns reconstructions of, in order.
        ranked_by: the run that cases were chosen by, see `chosen_cases`.
        chosen: (label, case) in order. They are loaded one by one, so that one at a time is in memory.
    """
    sections: list[str] = []
    packed: list[PackedCase] = []
    failed: list[str] = []
    panes = [Pane("truth", "Truth", "truth")]
    panes += [Pane(f"run{k}", run.name, f"run{k}") for k, run in enumerate(runs)]
    for place, (label, name) in enumerate(chosen):
        try:
            case = load(name)
        except UserError as error:
            failed.append(f"<p class=control>{escape(str(error).splitlines()[0])}</p>")
            continue
        made = {f"run{k}": case.reconstructions[run.name] for k, run in enumerate(runs)}
        used = sum(each.size for each in packed)
        allowance = next_allowance(VIEWER_BUDGET, used, len(chosen) - place, case.truth.size, len(made) + 1)
        packed.append(pack_case(name, label, {"truth": case.truth, **made}, case.spacing, allowance))
        if len(sections) < NUM_PICTURED:
            sections.append(compared_section(label, case, _scores(runs, name), len(packed) - 1))
    if not packed:
        return Pictures(tuple(failed))
    viewer = viewer_html(packed, panes, errors_on_demand=True)
    return Pictures(
        (
            f"<section class=viewer-section><h2>Slice viewer</h2>{viewer}"
            f"<p class=note>{escape(_ranking(ranked_by))}</p></section>",
            *failed,
            *sections,
        ),
        viewer=True,
    )


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
    told = {}
    for run in runs:
        rows = case_rows(run)
        key = ranking_metric(rows) if rows else None
        row = next((row for row in rows if row["case_id"] == case), {})
        value = None if key is None else number(row.get(key))
        if key is not None and value is not None:
            told[run.name] = f"{metric_of(key).title} {metric_of(key).text(value)}"
    return told
