"""The metrics of one evaluation: those that can be computed here, and the reasons of those that cannot.

A metric that cannot be computed (missing weights, volumes too small, unknown cameras) is reported as unavailable, with
the reason and a remedy. Nothing is put in its place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffux2ct.arguments import check_choice
from diffux2ct.command_line import command
from diffux2ct.errors import UserError
from diffux2ct.evaluation.anatomy.segmentation import Segmenter
from diffux2ct.evaluation.case_metrics import (
    Bones,
    Distortion,
    Family,
    Functions,
    ImplantLocalisation,
    Perceptual,
    Segmentation,
    Vertebrae,
    XrayConsistency,
)
from diffux2ct.evaluation.fidelity.protocols import protocol_named
from diffux2ct.evaluation.metric import RECORDS_KEY, foreign_records, function_keys, function_names, metric_of
from diffux2ct.evaluation.perception.ct_encoder import CtEncoder
from diffux2ct.evaluation.perception.lpips import Lpips
from diffux2ct.evaluation.perception.medclip import MedClipEncoder
from diffux2ct.evaluation.perception.weights import Unavailable
from diffux2ct.evaluation.planted.family import PlantedObjects, Reconstruct
from diffux2ct.evaluation.planted.settings import NAME as PLANTED
from diffux2ct.evaluation.planted.settings import Planting
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.set_metrics import CtDistribution, MedClipDistribution, SetFamily

DEFAULT_FAMILIES = ("distortion", "lpips", "bones", "segmentation", "implants", "vertebrae", "xrays", "fid_medclip")
"""Of evaluate.py (configs/metrics)."""

FAMILIES = (*DEFAULT_FAMILIES, "distribution", PLANTED)
"""The CT encoder's distances (distribution) take many seconds a volume; planted objects further reconstructions."""

DEFAULT_NAMES = ("psnr", "psnr3d", "ssim", "ssim3d")
"""Functions of two volumes that `evaluate` computes by default."""


@dataclass
class MetricSet:
    """Metrics of an evaluation's cases. ``unavailable``: {family: "reason; remedy"}."""

    families: list[Family]
    set_families: list[SetFamily] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    planted: PlantedObjects | None = None
    # By family: how many cases it scored, and how many it could not, with the first reason.
    _scored: dict[str, int] = field(default_factory=dict)
    _refused: dict[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def of_functions(cls, names: Sequence[str]) -> "MetricSet":
        """Functions of two volumes, see `metric.function_keys`. UserError: none, or an unknown name."""
        keys = function_keys(names)
        if not keys:
            raise UserError(f"metrics: none named; choose from {', '.join(function_names())}")
        return cls([Functions(keys)], context=_stored_records(keys))

    @classmethod
    def make(
        cls,
        names: Sequence[str] | None,
        protocol: str = "paper",
        *,
        functions: Sequence[str] = (),
        device: torch.device | str = "cpu",
        weights: str | Path | None = None,
        segmenter: Segmenter | None = None,
        precision: str = "fp32",
        planting: Planting | None = None,
    ) -> "MetricSet":
        """The families ``names`` (of `FAMILIES`) under a protocol (of `PROTOCOLS`), and functions of two volumes.

        functions: see `metric.function_keys`; those that a family computes under the protocol are not repeated.
        weights: a folder of other people's networks, see `weights.find_weights`. segmenter: of `segmentation`, which is
        left out without one. precision: "bf16" or "fp32", of the segmenter alone. planting: of the family `planted`.
        UserError: an unknown name, none at all, unreadable weights.
        """
        if not names or isinstance(names, str):
            raise UserError(f"metrics.families={names}: give a list; choose from {', '.join(FAMILIES)}")
        for name in names:
            check_choice("metrics.families", name, FAMILIES)
        if weights is not None and not Path(weights).is_dir():
            raise UserError(f"metrics.weights={weights}: not a folder; docs/evaluation.md says what lies in it")
        chosen = protocol_named(protocol)
        makers: dict[str, Callable[[], Family | SetFamily]] = {
            "distortion": lambda: Distortion(chosen),
            "lpips": lambda: Perceptual(Lpips.load(weights), device),
            "bones": Bones,
            "segmentation": lambda: Segmentation(_needed(segmenter), device, precision),
            "implants": ImplantLocalisation,
            "vertebrae": Vertebrae,
            "xrays": XrayConsistency,
            "distribution": lambda: CtDistribution(CtEncoder.load(weights).to(device), device),
            "fid_medclip": lambda: MedClipDistribution(MedClipEncoder.load(weights), device),
        }
        keys = [key for key in function_keys(functions) if key not in DEFAULT_NAMES]
        made = cls([Functions(keys)] if keys else [], context={"protocol": protocol} | _stored_records(keys))
        if PLANTED in names:
            made.planted = PlantedObjects(planting)
            made.context |= made.planted.context
        for name in (name for name in names if name != PLANTED):
            try:
                family = makers[name]()
            except Unavailable as error:
                made.unavailable[name] = f"{error.reason}; {error.command}"
                continue
            (made.families if isinstance(family, Family) else made.set_families).append(family)  # type: ignore[arg-type]
        return made

    def score(self, case: ScoredCase, volume: Tensor, mean: Tensor) -> dict[str, float | None]:
        """One row: the reconstruction's values by key, and the mean training volume's as ``floor_<key>``.

        `CASE_COUNTS`, and what a segmentation network reaches on the truth itself, have no floor.
        volume, mean: [1, d, h, w] in [-1, 1], on the CPU.
        """
        own, floor, counts = {}, {}, {}
        for family in self.families:
            scores = self._of_case(family.name, family.score, case, torch.cat((volume, mean)))
            if scores is None:
                continue
            own |= scores[0]
            counts |= family.counts(case)
            floor |= {f"floor_{key}": value for key, value in scores[1].items() if metric_of(key).floor}
        for family in self.set_families:
            family.add(case, volume, mean)
        return own | counts | floor

    def plant(self, case: ScoredCase, reconstruct: Reconstruct) -> dict[str, float | None]:
        """The values of planted objects, which the method has to reconstruct; none without that family."""
        if self.planted is None:
            return {}
        return self._of_case(PLANTED, self.planted.score, case, reconstruct) or {}

    def _of_case(self, name: str, score: Callable[..., Any], *given: Any) -> Any:
        """A family's scores, counted; None where it cannot score the case."""
        try:
            scores = score(*given)
        except Unavailable as error:
            count, reason = self._refused.get(name, (0, f"{error.reason}; {error.command}"))
            self._refused[name] = count + 1, reason
            return None
        self._scored[name] = self._scored.get(name, 0) + 1
        return scores

    def finish(self) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """Values of the whole set by key, their floors, and by family the context of its values."""
        for name, (count, reason) in self._refused.items():
            of = count + self._scored.get(name, 0)
            self.unavailable[name] = reason if count == of else f"for {count} of {of} cases: {reason}"
        values, floors, about = {}, {}, {}
        for family in self.set_families:
            try:
                own, floor, context = family.finish()
            except UserError as error:
                self.unavailable[family.name] = str(error)
                continue
            values |= own
            floors |= floor
            about[family.name] = context
        return values, floors, about


def _stored_records(keys: Sequence[str]) -> dict[str, Any]:
    records = foreign_records(keys)
    return {RECORDS_KEY: records} if records else {}


def _needed(segmenter: Segmenter | None) -> Segmenter:
    if segmenter is None:
        remedy = f"train one ({command('train')} model=vnet ...) and give its run as metrics.segmenter=RUN"
        raise Unavailable("segmentation", "no segmentation network was given", remedy)
    return segmenter
