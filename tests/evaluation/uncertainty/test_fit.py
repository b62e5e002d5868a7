from dataclasses import replace

import numpy as np
import pytest
import torch

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.calibration import Rule
from diffux2ct.evaluation.uncertainty.fit import fit, spread_of_case
from diffux2ct.evaluation.uncertainty.spread import Draws


class Guess:
    """Draws about the middle of the range, whatever the X-rays show."""

    def draws(self, xrays, count, *, generator):
        size = xrays["frontal"].shape[-1]
        return 0.1 * torch.randn(count, 1, 1, size, size, size, generator=generator)


def test_cases_of_a_patient_count_as_one(phantoms):
    dataset = PreparedDataset(phantoms, "train")
    rule = Rule(alpha=0.3)
    scales, counts = fit(Guess(), dataset, Draws(2, {}), rule)
    assert counts["voxels"] == 6
    # Draws of 8^3 voxels leave some with hardly any spread: 238 HU are the median error, and the floor is 10.
    assert 1 < scales["voxels"] < 200
    dataset.cases = [replace(case, patient=f"p{index // 3}") for index, case in enumerate(dataset.cases)]
    with pytest.raises(UserError, match="2 patients; crc at alpha=0.3 needs 3"):
        fit(Guess(), dataset, Draws(2, {}), rule)
    assert fit(Guess(), dataset, Draws(2, {}), Rule(alpha=0.4))[1]["voxels"] == 2


def test_the_share_outside_is_what_the_rule_allows(phantoms):
    dataset, rule, draws = PreparedDataset(phantoms, "train"), Rule(alpha=0.3), Draws(2, {})
    scale = fit(Guess(), dataset, draws, rule)[0]["voxels"]
    losses = []
    for index in range(len(dataset)):
        case = ScoredCase.of(dataset.cases[index], dataset[index]["volume"], dataset.window)
        spread = spread_of_case(Guess(), case, {"frontal": dataset[index]["frontal"][None]}, draws)
        losses.append(np.mean(spread.scores(rule.floor)["voxels"] > scale))
    assert (6 * np.mean(losses) + 1) / 7 == pytest.approx(0.3, abs=2e-3)
    assert (6 * np.mean(losses) + 1) / 7 <= 0.3
