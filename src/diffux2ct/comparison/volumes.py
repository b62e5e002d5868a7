"""The volumes of a comparison: reconstructions of the evaluations, and the truth in the prepared folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from diffux2ct.comparison.find_runs import read_config
from diffux2ct.comparison.pictures import ComparedCase, Pictures, case_sections, chosen_cases, distribution_plots
from diffux2ct.comparison.runs import ScoredRun, is_number, test_set_name, test_sets
from diffux2ct.data.io.ct_image import CtImage
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import Metric
from diffux2ct.intensity import HU_WINDOW, to_hu


def illustrate(
    runs: Sequence[ScoredRun],
    metrics: Sequence[Metric],
    reference: ScoredRun | None = None,
    *,
    num_cases: int = 3,
    root: Path | None = None,
    volumes: bool = True,
) -> Pictures:
    """Pictures for the page, of one test set: that of ``reference``, which also ranks the cases.

    reference: None takes the first run. num_cases: to show. root: the prepared folder; None takes that which an
    evaluation or its run's config names. volumes: False leaves only distributions. Where volumes cannot be shown, one
    line gives the reason.
    """
    first = runs[0] if reference is None else reference
    group = next(group for group in test_sets(runs) if any(run is first for run in group))
    plots = distribution_plots(group, metrics)
    names = {run.name for run in group}
    others = [run.name for run in runs if run.name not in names]
    lines: list[str] = []
    if others and (plots or volumes):
        named = ", ".join(others)
        lines.append(f"Pictured: {test_set_name(first)}. Scored otherwise, so not in the pictures: {named}.")
    pictures = Pictures()
    if volumes:
        try:
            pictures, left_out = _case_pictures(group, first, num_cases, root)
            lines += left_out
        except UserError as error:
            lines.append(f"No pictures: {_one_line(error)}")
    return replace(pictures, lines=(*lines, *pictures.lines), plots=plots)


def _one_line(error: UserError) -> str:
    return str(error).splitlines()[0]


def _case_pictures(
    group: Sequence[ScoredRun], first: ScoredRun, num_cases: int, root: Path | None
) -> tuple[Pictures, list[str]]:
    """The sections, and a sentence on each run that they leave out. UserError where nothing can be shown."""
    ranked = next((run for run in (first, *group) if run.cases is not None and run.cases.cases), None)
    if ranked is None:
        raise UserError(f"{first.folder}: has no per_case.csv, by which cases are chosen; run evaluate.py again")
    chosen = chosen_cases(ranked, num_cases)
    truth = find_truth([first, *(run for run in group if run is not first)], chosen[0][1], root)
    shown, lines = [], []
    for run in group:
        try:
            read_reconstruction(run, truth, chosen[0][1])
            shown.append(run)
        except UserError as error:
            lines.append(f"{run.name} is not in the pictures: {_one_line(error)}")
    if not shown:
        raise UserError("; ".join(line.partition(": ")[2] for line in lines))
    merged = [run.name for run in shown if len(run.merged) > 1]
    if merged:
        lines.append(f"Of merged seeds the pictures show one run each: {', '.join(merged)}.")

    def load(case_id: str) -> ComparedCase:
        made = {run.name: read_reconstruction(run, truth, case_id) for run in shown}
        index = _index(truth, case_id)
        hu = to_hu(truth[index]["volume"], truth.window)
        return ComparedCase(case_id, hu, made, truth.cases[index].spacing)

    return case_sections(shown, ranked, chosen, load), lines


def find_truth(runs: Sequence[ScoredRun], case_id: str, root: Path | None) -> PreparedDataset:
    """The prepared split that the runs were scored on, at the size that they reconstruct.

    root: its folder; None takes the first that a run names and that still exists. UserError: none is known, or none
    exists and holds ``case_id``; the first one's reason.
    """
    problems = []
    for run in runs:
        config = read_config(run.folder).get("dataset")
        config = config if isinstance(config, dict) else {}
        folder = root or known_root(run, config)
        if folder is None:
            problems.append(f"{run.folder}: the data set's folder is unknown; give it as --root")
            continue
        try:
            size = _read_ct(run, case_id).hu.shape[0]
            window = config.get("window")
            pair = isinstance(window, list) and len(window) == 2 and all(map(is_number, window))
            window = (window[0], window[1]) if pair else HU_WINDOW  # type: ignore[index]
            found = PreparedDataset(folder, str(run.summary.get("split") or "test"), size=size, window=window)
            _index(found, case_id)
            return found
        except UserError as error:
            hint = "" if root else "; where it was moved, give it as --root"
            moved = "no prepared data set" in str(error)
            problems.append(_one_line(error).rstrip(".") + (hint if moved else ""))
    raise UserError(problems[0])


def known_root(run: ScoredRun, config: Mapping[str, Any]) -> Path | None:
    """The prepared folder that an evaluation names, or that its run was trained on where it was scored on that one.

    config: the ``dataset`` group of the run's config.
    """
    if run.summary.get("root"):
        return Path(run.summary["root"])
    root, same = config.get("root"), run.summary.get("dataset") in (None, config.get("name"))
    return Path(root) if same and isinstance(root, str) and root.isprintable() else None


def read_reconstruction(run: ScoredRun, truth: PreparedDataset, case_id: str) -> Num[np.ndarray, "d h w"]:
    """HU of a case as the run reconstructed it. UserError: no such file, or it lies elsewhere than the truth."""
    made, case = _read_ct(run, case_id), truth.cases[_index(truth, case_id)]
    path = _path(run, case_id)
    if made.hu.shape != (truth.size,) * 3:
        sizes = ["×".join(map(str, shape)) for shape in (made.hu.shape, (truth.size,) * 3)]
        raise UserError(f"{path}: is {sizes[0]} voxels, not {sizes[1]} as the truth in {truth.root}")
    if not np.allclose((*made.spacing, *made.origin), (*case.spacing, *case.origin), rtol=1e-4, atol=1e-2):
        raise UserError(f"{path}: lies elsewhere than the truth in {truth.root}; is that the right folder?")
    return made.hu


def _path(run: ScoredRun, case_id: str) -> Path:
    return run.folder / "reconstructions" / f"{case_id}.nii.gz"


def _read_ct(run: ScoredRun, case_id: str) -> CtImage:
    # SimpleITK is slow to import, and a table needs none.
    from diffux2ct.data.io.volume import read_own_ct

    return read_own_ct(_path(run, case_id))


def _index(dataset: PreparedDataset, case_id: str) -> int:
    index = next((i for i, case in enumerate(dataset.cases) if case.case_id == case_id), None)
    if index is None:
        raise UserError(f"{dataset.root}: has no case {case_id} in split {dataset.split}; is it the right folder?")
    return index
