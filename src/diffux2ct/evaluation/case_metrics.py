"""Metrics that score one case, in families: what is computed together. Each says under which keys it answers."""

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
    """Scores volumes against one case. None as a value: not defined for this case."""

    name: str

    @abstractmethod
    def score(self, case: ScoredCase, volumes: Float[Tensor, "n d h w"]) -> list[Scores]:
        """One dict a volume, with the same keys; volumes in [-1, 1], on the CPU.

        Raises `Unavailable` where the metric cannot be had for volumes like these.
        """

    def counts(self, case: ScoredCase) -> dict[str, int | None]:
        """What is true of the case itself, of `metric.CASE_COUNTS`; None where it is not known."""
        return {}


class Distortion(Family):
    """PSNR, SSIM, MAE and the like under a named protocol."""

    name = "distortion"

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """The keys of `protocols.score`."""
        return score(volumes, case.volume.expand_as(volumes), case.window, self.protocol)


class Functions(Family):
    """Functions of two volumes [D, H, W] by their keys; see `metric.function_keys`."""

    name = "functions"

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """One key a function."""
        return [{key: measure(key, v, case.volume[0], case.window) for key in self.keys} for v in volumes]


class Perceptual(Family):
    """LPIPS."""

    name = "lpips"

    def __init__(self, network: Lpips, device: torch.device | str) -> None:
        self.network, self.device = network.to(device), device

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """lpips. The truth's features are computed once for all volumes."""
        distances = self.network.distance(volumes.to(self.device), case.volume.to(self.device))
        return [{"lpips": float(value)} for value in distances]


class Bones(Family):
    """Bone above a fixed HU."""

    name = "bones"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """dice_bone, hd95_bone."""
        return [bone_scores(_hu(case, v), case.hu, case.spacing) for v in volumes]


class Segmentation(Family):
    """Structures as a segmentation network finds them in both volumes, and the vertebrae among them."""

    name = "segmentation"

    def __init__(self, segmenter: Segmenter, device: torch.device | str, precision: str = "fp32") -> None:
        self.segmenter, self.device, self.precision = segmenter, device, precision
        # The mean volume is the same for all cases: what the network finds in it is kept.
        self._floor: tuple[Tensor, np.ndarray] | None = None
        # Only structures of a single label tell which vertebra they are.
        self.values = [min(v) if len(v := structure_values(s)) == 1 else 0 for s in segmenter.structures]

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """dice_<s>, hd95_<s> of each structure: of both segmentations, and against labels; segmented_vertebra_*."""
        structures = self.segmenter.structures
        labels = None if case.labels is None else class_table(structures)[case.labels]
        truth = self._segment(case.volume)
        rows = []
        for index, volume in enumerate(volumes):
            classes = self._segment_again(volume[None]) if index else self._segment(volume[None])
            row = segmented_scores(classes, truth, labels, structures, case.spacing)
            rows.append(row | self._vertebrae(case, classes))
        return rows

    def _segment(self, volume: Tensor) -> np.ndarray:
        return segment(self.segmenter, volume, self.device, self.precision)

    def _segment_again(self, volume: Tensor) -> np.ndarray:
        if self._floor is None or not torch.equal(self._floor[0], volume):
            self._floor = volume.clone(), self._segment(volume)
        return self._floor[1]

    def _vertebrae(self, case: ScoredCase, classes: np.ndarray) -> Scores:
        if case.labels is None or not any(self.values):
            return {}
        table = np.array([0, *self.values], np.uint8)
        found, true = (measure_bodies(labels, case.spacing) for labels in (table[classes], case.labels))
        wanted = {value: body for value, body in true.items() if value in self.values}
        return {f"segmented_{key}": value for key, value in vertebra_errors(found, wanted).as_row().items()}


class ImplantLocalisation(Family):
    """Screws and rods: found or not, and how far off."""

    name = "implants"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """implant_recall, implant_precision, implant_tip_mm, implant_axis_deg, implant_rod_mm.

        `Unavailable` where the case's labels are of another size than the volumes.
        """
        return [implant_scores(_hu(case, v), case.implants, case.spacing).as_row() for v in volumes]

    def counts(self, case: ScoredCase) -> dict[str, int | None]:
        """implant_unseen; not known without labels, and of voxels in which no implant is looked for."""
        known = case.labels is not None and max(case.spacing) <= MAX_VOXEL_MM
        return {"implant_unseen": case.implants.unseen if known else None}


class Vertebrae(Family):
    """Heights and spacing of the labelled vertebrae, found again in the reconstruction by their look."""

    name = "vertebrae"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """vertebra_height_mm, vertebra_spacing_mm, vertebra_found.

        `Unavailable` without labels, and where they are of another size than the volumes.
        """
        case.check_labels_fit(self.name)
        if case.labels is None:
            raise Unavailable(self.name, "the cases have no labels", "prepare the folder from scans with label files")
        true = measure_bodies(case.labels, case.spacing)
        found = [match_bodies(_hu(case, v), case.hu, true, case.spacing) for v in volumes]
        return [vertebra_errors(bodies, true).as_row() for bodies in found]


class XrayConsistency(Family):
    """Re-projection through the case's own cameras."""

    name = "xrays"

    def score(self, case: ScoredCase, volumes: Tensor) -> list[Scores]:
        """xray_residual_frontal, xray_residual_lateral, and their root mean squares; line integrals."""
        try:
            xrays = case.xrays
        except UserError as error:
            raise Unavailable(self.name, str(error), "see the case's case.json") from error
        if xrays is None:
            raise Unavailable(self.name, "the data do not tell their cameras", "evaluate a prepared folder")
        return [dict(residual_scores(xrays.residuals(_hu(case, v)))) for v in volumes]


def _hu(case: ScoredCase, volume: Tensor) -> np.ndarray:
    return to_hu(volume[None], case.window)
