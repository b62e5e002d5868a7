"""Choose the scales of intervals on patients that are not scored."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.diffusion.samplers.sampling import sampling_record
from diffux2ct.errors import UserError
from diffux2ct.evaluation.contracts import EvaluationDataset
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.calibration import Calibration, Rule, content_of, hashed, loss_curve
from diffux2ct.evaluation.uncertainty.spread import VOXELS, CaseSpread, Draws
from diffux2ct.evaluation.uncertainty.support import case_support
from diffux2ct.files.atomic import sha256_of
from diffux2ct.reconstructors.base import xrays_of
from diffux2ct.xray.pose import is_view


def spread_of_case(reconstructor: Any, case: ScoredCase, xrays: Mapping[str, Tensor], draws: Draws) -> CaseSpread:
    """Draw for one case."""
    support = case_support(case.path, case.volume.shape[1], tuple(filter(is_view, xrays)))
    return CaseSpread.of(case, draws.of(reconstructor, xrays, case.case_id), support)


def calibrate(
    reconstructor: Any,
    chosen: PreparedDataset,
    draws: Draws,
    rule: Rule,
    train_set: PreparedDataset | None = None,
    **about: Any,
) -> Calibration:
    """The calibration of intervals by ``rule`` on the patients of ``chosen``.

    train_set: cases that the model was trained on; UserError where some of them are chosen. about: further
    fields of `Calibration`.
    """
    contents = [content_of(case) for case in chosen.cases]
    if train_set is not None and (seen := set(contents).intersection(map(content_of, train_set.cases))):
        raise UserError(
            f"uncertainty=calibrate: the model was trained on {len(seen)} of these scans and errs less on them; use "
            "split=val, or a root= of other patients"
        )
    scales, counts = fit(reconstructor, chosen, draws, rule)
    return Calibration(
        rule=rule,
        scales=scales,
        num_patients=counts,
        num_samples=draws.num_samples,
        sampling=sampling_record(draws.settings),
        precision=draws.precision,
        data=sha256_of(chosen.root / "manifest.csv"),
        split=chosen.split,
        patients=list(dict.fromkeys(hashed(case.patient) for case in chosen.cases)),
        contents=contents,
        **about,
    )


def fit(
    reconstructor: Any, dataset: EvaluationDataset, draws: Draws, rule: Rule
) -> tuple[dict[str, float], dict[str, int]]:
    """Scales by quantity, and the number of patients behind each.

    A scalar has none where too few patients have it, or no scale covers it.
    UserError: too few patients, or no scale for voxels.
    """
    patients = [case.patient for case in dataset.cases]
    rule.check_patients(len(set(patients)))
    curves: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for index in tqdm(range(len(dataset)), desc="calibrate", unit="case", smoothing=0):
        sample = dataset[index]
        case = ScoredCase.of(dataset.cases[index], sample["volume"], dataset.window)
        xrays = {key: value[None] for key, value in xrays_of(sample).items()}
        spread = spread_of_case(reconstructor, case, xrays, draws)
        for name, scores in spread.scores(rule.floor).items():
            curves[name][patients[index]].append(loss_curve(scores))
    scales, counts = {}, {}
    for name, by_patient in curves.items():
        losses = np.stack([np.mean(several, axis=0) for several in by_patient.values()])
        if (scale := rule.smallest_scale(losses)) is not None:
            scales[name], counts[name] = scale, len(losses)
    if VOXELS not in scales:
        raise UserError("uncertainty=calibrate: no scale covers the truth; is this the model's kind of data?")
    return scales, counts
