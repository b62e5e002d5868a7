"""Metrics of one case, in families: scores that share their computation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.data.labels import class_table, structure_values
from diffux2ct.errors import UserError
from diffux2ct.evaluation.anatomy.bones import bone_scores, segment, segmented_scores
from diffux2ct.evaluation.anatomy.implants import MAX_VOXEL_MM, implant_scores
from diffux2ct.evaluation.anatomy.segmentation import Segmenter
from diffux2ct.evaluation.anatomy.vertebra_matching import match_bodies
from diffux2ct.evaluation.anatomy.vertebrae import measure_bodies, vertebra_errors
from diffux2ct.evaluation.fidelity.protocols import Protocol, score
from diffux2ct.evaluation.fidelity.xray_consistency import residual_scores
from diffux2ct.evaluation.metric import measure
from diffux2ct.evaluation.perception.lpips import Lpips
from diffux2ct.evaluation.perception.weights import Unavailable
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.intensity import to_hu

Scores = dict[str, float | None]


class Family(ABC):
    """Scores volumes against one case. A score of None is undefined for this case."""

    name: str

    @abstractmethod
    def score(self, case: ScoredCase, volumes: Float[Tensor, "n d h w"]) -> list[Scores]:
        """One dict a volume, with the same keys; volumes in [-1, 1], on the CPU. May raise `Unavailable`."""

    def counts(self, case: ScoredCase) -> dict[str, int | None]:
        """`metric.CASE_COUNTS` of the case itself; None where unknown."""
        return {}


class Distortion(Family):
    """PSNR, SSIM, MAE and the like under a named protocol, see `protocols.score`."""

    name = "distortion"

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        return score(volumes, case.volume.expand_as(volumes), case.window, self.protocol)


class Functions(Family):
    """Functions of two volumes [D, H, W] by their keys; see `metric.function_keys`."""

    name = "functions"

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        return [{key: measure(key, v, case.volume[0], case.window) for key in self.keys} for v in volumes]


class Perceptual(Family):
    """LPIPS. The truth's features are computed once for all volumes."""

    name = "lpips"

    def __init__(self, network: Lpips, device: torch.device | str) -> None:
        self.network, self.device = network.to(device), device

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        distances = self.network.distance(volumes.to(self.device), case.volume.to(self.device))
        return [{"lpips": float(value)} for value in distances]


class Bones(Family):
    """Bone above a fixed HU."""

    name = "bones"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        return [bone_scores(_hu(case, v), case.hu, case.spacing) for v in volumes]


class Segmentation(Family):
    """Structures as a segmentation network finds them in both volumes, and the vertebrae among them.

    dice_<s>, hd95_<s> of each structure: of both segmentations, and against labels; segmented_vertebra_*.
    """

    name = "segmentation"

    def __init__(self, segmenter: Segmenter, device: torch.device | str, precision: str = "fp32") -> None:
        self.segmenter, self.device, self.precision = segmenter, device, precision
        # The mean volume is the same for all cases: its segmentation is kept.
        self._floor: tuple[Tensor, np.ndarray] | None = None
        # Only a structure of a single label is one vertebra.
        self.values = [min(v) if len(v := structure_values(s)) == 1 else 0 for s in segmenter.structures]

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        structures = self.segmenter.structures
        labels = None if case.labels is None else class_table(structures)[case.labels]
        truth = self._segment(case.volume)
        rows = []
        for index, volume in enumerate(volumes):
            classes = self._segment(volume[None], keep=index > 0)
            row = segmented_scores(classes, truth, labels, structures, case.spacing)
            rows.append(row | self._vertebrae(case, classes))
        return rows

    def _segment(self, volume: Tensor, keep: bool = False) -> np.ndarray:
        if keep and self._floor is not None and torch.equal(self._floor[0], volume):
            return self._floor[1]
        classes = segment(self.segmenter, volume, self.device, self.precision)
        if keep:
            self._floor = volume.clone(), classes
        return classes

    def _vertebrae(self, case: ScoredCase, classes: np.ndarray) -> Scores:
        if case.labels is None or not any(self.values):
            return {}
        table = np.array([0, *self.values], np.uint8)
        found, true = (measure_bodies(labels, case.spacing) for labels in (table[classes], case.labels))
        wanted = {value: body for value, body in true.items() if value in self.values}
        return {f"segmented_{key}": value for key, value in vertebra_errors(found, wanted).as_row().items()}


class ImplantLocalisation(Family):
    """Screws and rods: found or not, and how far off. `Unavailable` where labels are of another size."""

    name = "implants"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        return [implant_scores(_hu(case, v), case.implants, case.spacing).as_row() for v in volumes]

    def counts(self, case: ScoredCase) -> dict[str, int | None]:
        """implant_unseen; unknown without labels, and of voxels too coarse to look for implants."""
        known = case.labels is not None and max(case.spacing) <= MAX_VOXEL_MM
        return {"implant_unseen": case.implants.unseen if known else None}


class Vertebrae(Family):
    """Heights and spacing of the labelled vertebrae, matched in the reconstruction by their look.

    `Unavailable` without labels, and where they are of another size than the volumes.
    """

    name = "vertebrae"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        case.check_labels_fit(self.name)
        if case.labels is None:
            raise Unavailable(self.name, "the cases have no labels", "prepare the folder from scans with label files")
        true = measure_bodies(case.labels, case.spacing)
        found = [match_bodies(_hu(case, v), case.hu, true, case.spacing) for v in volumes]
        return [vertebra_errors(bodies, true).as_row() for bodies in found]


class XrayConsistency(Family):
    """Re-projection through the case's own cameras; line integrals."""

    name = "xrays"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        try:
            xrays = case.xrays
        except UserError as error:
            raise Unavailable(self.name, str(error), "see the case's case.json") from error
        if xrays is None:
            raise Unavailable(self.name, "the data have no cameras", "evaluate a prepared folder")
        return [dict(residual_scores(xrays.residuals(_hu(case, v)))) for v in volumes]


def _hu(case: ScoredCase, volume: Tensor) -> np.ndarray:
    return to_hu(volume[None], case.window)
