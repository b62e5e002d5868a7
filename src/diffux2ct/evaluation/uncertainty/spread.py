"""Draws of a reconstructor for one patient: their mean, spread and intervals, of voxels and of clinical scalars."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffux2ct.arguments import Precision
from diffux2ct.diffusion.samplers.sampling import sampling_record
from diffux2ct.errors import UserError
from diffux2ct.evaluation.anatomy.bones import fixed_hu_bone
from diffux2ct.evaluation.anatomy.vertebra_matching import match_bodies
from diffux2ct.evaluation.anatomy.vertebrae import measure_bodies
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.calibration import Calibration
from diffux2ct.intensity import Window, denormalize_hu, to_hu
from diffux2ct.reconstructors.base import on_device
from diffux2ct.reconstructors.precision import autocast
from diffux2ct.seeding import CPU, seeded_generator

_DRAWS = 9  # salt: the draws of a spread are others than a reconstruction's
VOXELS, BONE_VOLUME, VERTEBRA_HEIGHT = "voxels", "bone_volume", "vertebra_height"
_FLOORS = {BONE_VOLUME: 1.0, VERTEBRA_HEIGHT: 0.2}
"""Added to the standard deviation of a scalar: ml and mm."""


@dataclass(frozen=True)
class Draws:
    """Draws ``num_samples`` CTs for each patient. settings: of the reconstructor's ``draws``.

    UserError for fewer than two, which have no spread.
    """

    num_samples: int
    settings: Mapping[str, Any]
    seed: int = 0
    precision: Precision = "fp32"
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise UserError(f"num_samples={self.num_samples}: a spread needs 2 or more")

    def of(self, reconstructor: Any, xrays: Mapping[str, Tensor], case_id: str) -> Float[Tensor, "k d h w"]:
        """The draws for one patient's X-rays [1, ...], in [-1, 1], on the CPU. case_id: with the seed fixes the noise.

        UserError: a method that draws nothing, or values that are not finite.
        """
        number = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8])  # another in each split
        generator = seeded_generator(CPU, self.seed, number, _DRAWS)  # on the CPU: the same noise on every device
        with torch.inference_mode(), autocast(self.precision, self.device):
            draws = reconstructor.draws(
                on_device(xrays, self.device), self.num_samples, generator=generator, **self.settings
            )
            draws = draws[:, 0, 0].float().cpu()
        if not torch.isfinite(draws).all():
            raise UserError("uncertainty: the draws hold NaN or infinite values; use an earlier checkpoint")
        return draws.clamp(-1, 1)

    def about(self, calibration: Calibration | None, note: str) -> dict[str, Any]:
        """For metrics.json and reconstruct.json. note: on the calibration, or the reason why there is none."""
        own = {"num_samples": self.num_samples, "sampling": sampling_record(self.settings)}
        return own | {"calibration": None if calibration is None else calibration.about(), "note": note}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of draws, and the truth where it is known, in one unit and of one shape."""

    mean: Float[np.ndarray, "*shape"]
    std: Float[np.ndarray, "*shape"]
    truth: Float[np.ndarray, "*shape"] | None = None

    @classmethod
    def of_volumes(cls, draws: Float[Tensor, "k d h w"], window: Window) -> "Spread":
        """Voxels in HU."""
        std, mean = torch.std_mean(draws, dim=0)
        return cls(denormalize_hu(mean, window).numpy(), (std * ((window[1] - window[0]) / 2)).numpy())

    def interval(
        self, scale: float, floor: float, window: Window
    ) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
        """mean -+ scale * (std + floor), within ``window``, where the truth is."""
        half = scale * (self.std + floor)
        return (self.mean - half).clip(*window), (self.mean + half).clip(*window)

    def scores(self, floor: float) -> Float[np.ndarray, "*shape"]:
        """|truth - mean| / (std + floor): the scale from which on the interval holds the truth."""
        assert self.truth is not None
        return np.abs(self.truth - self.mean) / (self.std + floor)


@dataclass(frozen=True)
class CaseSpread:
    """The spread of draws for one case with its truth. support: `ray_support`, all voxels where it is unknown."""

    case: ScoredCase
    volume: Spread
    scalars: Mapping[str, Spread]
    support: Bool[np.ndarray, "d h w"]

    @classmethod
    def of(cls, case: ScoredCase, draws: Float[Tensor, "k d h w"], support: np.ndarray | None) -> "CaseSpread":
        """From a case's draws in [-1, 1]."""
        made = Spread.of_volumes(draws, case.window)
        volume = Spread(made.mean, made.std, denormalize_hu(case.volume[0], case.window).numpy())
        whole = [to_hu(draw[None], case.window) for draw in draws]
        scalars = {BONE_VOLUME: _bone_volume(case, whole), VERTEBRA_HEIGHT: _vertebra_heights(case, whole)}
        known = {name: spread for name, spread in scalars.items() if spread is not None and spread.mean.size}
        return cls(case, volume, known, np.ones_like(made.mean, bool) if support is None else support)

    def scores(self, floor: float) -> dict[str, Float[np.ndarray, " n"]]:
        """`Spread.scores` by quantity: of voxels that rays reach, and of scalars. floor: HU."""
        scalars = {name: spread.scores(_FLOORS[name]) for name, spread in self.scalars.items()}
        return {VOXELS: self.volume.scores(floor)[self.support], **scalars}


def _bone_volume(case: ScoredCase, draws: list[np.ndarray]) -> Spread:
    """Bone above the threshold, ml."""
    ml = float(np.prod(case.spacing)) / 1000
    volumes = np.array([[fixed_hu_bone(hu, case.spacing).sum() * ml] for hu in (case.hu, *draws)], np.float64)
    return Spread(volumes[1:].mean(0), volumes[1:].std(0, ddof=1), volumes[0])


def _vertebra_heights(case: ScoredCase, draws: list[np.ndarray]) -> Spread | None:
    """Heights of the labelled vertebrae, mm; None without labels.

    A vertebra that fewer than two draws show has an infinite mean, so that no interval holds its true height.
    """
    if case.labels is None:
        return None
    true = measure_bodies(case.labels, case.spacing)
    found = [match_bodies(hu, case.hu, true, case.spacing) for hu in draws]
    heights = {value: [bodies[value].height for bodies in found if value in bodies] for value in true}
    drawn = [(np.mean(own), np.std(own, ddof=1)) if len(own) >= 2 else (np.inf, 0.0) for own in heights.values()]
    mean, std = np.array(drawn, float).reshape(-1, 2).T
    return Spread(mean, std, np.array([body.height for body in true.values()], float))
