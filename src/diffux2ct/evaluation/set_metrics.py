"""Metrics of a whole test set: distances between the features of reconstructions and of true volumes."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from diffux2ct.evaluation.perception.distribution import (
    AXES,
    SliceMoments,
    frechet_distance,
    kernel_distance,
    slice_frechet_distances,
)
from diffux2ct.evaluation.perception.medclip import MedClipEncoder
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.intensity import denormalize_hu

Values = dict[str, float]


class SetFamily(ABC):
    """Takes in every case once; the values come at the end. Two samples or more are needed."""

    name: str

    @abstractmethod
    def add(self, case: ScoredCase, volume: Tensor, mean: Tensor) -> None:
        """Take in a case's truth, its reconstruction and the mean training volume [1, d, h, w] in [-1, 1]."""

    @abstractmethod
    def finish(self) -> tuple[Values, Values, dict[str, Any]]:
        """Values by key, the floor's, and their context: numbers of samples, spread."""


class CtDistribution(SetFamily):
    """Frechet and kernel distance of a 3D CT encoder's features. Not FID: another encoder, of volumes.

    The kernel distance is unbiased; the Frechet distance falls with the number of volumes. encoder: a `CtEncoder`, or
    another with its ``name`` and ``features``.
    """

    name = "distribution"

    def __init__(self, encoder: Any, device: torch.device | str, seed: int = 0) -> None:
        self.encoder, self.device, self.seed = encoder, device, seed
        self.true: list[Tensor] = []
        self.made: list[Tensor] = []
        self.mean: Tensor | None = None

    def add(self, case: ScoredCase, volume: Tensor, mean: Tensor) -> None:
        self.true.append(self._features(case, case.volume))
        self.made.append(self._features(case, volume))
        self.mean = self._features(case, mean) if self.mean is None else self.mean

    def _features(self, case: ScoredCase, volume: Tensor) -> Tensor:
        hu = denormalize_hu(volume.clamp(-1, 1).to(self.device), case.window)
        return self.encoder.features(hu, case.spacing).float().cpu()

    def finish(self) -> tuple[Values, Values, dict[str, Any]]:
        true = torch.cat(self.true)
        values, spread = self._distances(torch.cat(self.made), true)
        floor = {} if self.mean is None else self._distances(self.mean.expand_as(true), true)[0]
        return values, floor, {"encoder": self.encoder.name, "num_volumes": len(true), "seed": self.seed} | spread

    def _distances(self, made: Tensor, true: Tensor) -> tuple[Values, dict[str, Any]]:
        kernel = kernel_distance(made, true, paired=True, seed=self.seed)
        values = {"fd_ct": frechet_distance(made, true).value, "kd_ct": kernel.value}
        return values, {"kd_deviation": kernel.deviation, "subset_size": kernel.subset_size}


class MedClipDistribution(SetFamily):
    """FID of slices with MedCLIP's image encoder, as the paper's: all axes pooled, each axis alone beside it."""

    name = "fid_medclip"

    def __init__(self, encoder: MedClipEncoder, device: torch.device | str) -> None:
        encoder = encoder.to(device)
        self.true, self.made, self.mean = (SliceMoments(encoder) for _ in range(3))

    def add(self, case: ScoredCase, volume: Tensor, mean: Tensor) -> None:
        self.true.add(case.volume)
        self.made.add(volume)
        if not self.mean.per_axis:
            self.mean.add(mean)

    def finish(self) -> tuple[Values, Values, dict[str, Any]]:
        distances = slice_frechet_distances(self.made, self.true)
        floor = slice_frechet_distances(self.mean, self.true)["all"].value
        about = {f"fid_medclip_{axis}": distances[axis].value for axis in AXES}
        return (
            {"fid_medclip": distances["all"].value},
            {"fid_medclip": floor},
            about | {"num_slices": distances["all"].num_a},
        )
