"""The family ``planted``: objects are put into a CT, its X-rays are taken anew, and the method reconstructs again.

All is done as the case was prepared: at the stored size, by the case's own camera, poses, projector and attenuation;
volume and X-rays are then averaged to the model's size. Both reconstructions, with and without an object, start from
the same random draws, so that their difference is the object's.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from diffux2ct.data.prepared.augment import Acquisition
from diffux2ct.data.prepared.dataset import load_array
from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception.weights import Unavailable
from diffux2ct.evaluation.planted.detection import MATCHED, Template, centroid, detectability, recovered
from diffux2ct.evaluation.planted.objects import Place, Planted, choose_place, clearance, planted_objects
from diffux2ct.evaluation.planted.settings import NAME, Planting
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.intensity import block_mean, denormalize_hu

Reconstruct = Callable[[Mapping[str, Tensor]], Tensor]
"""Line integrals [n, n] of each view -> a volume [1, n, n, n] in [-1, 1], on the CPU, the draws the same."""

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Shown:
    """Axial slices, HU, through an object of a case: the CT with it, what it adds, and both reconstructed."""

    case_id: str
    key: str
    truth: Num[np.ndarray, "h w"]
    planted: Num[np.ndarray, "h w"]
    reconstruction: Num[np.ndarray, "h w"]
    difference: Num[np.ndarray, "h w"]
    spacing: tuple[float, float, float]


class PlantedObjects:
    """Scores the part of each planted object that a method shows. ``shown``: slices of the first case."""

    name = NAME

    def __init__(self, settings: Planting | None = None) -> None:
        self.settings = settings or Planting()
        self.objects = planted_objects(self.settings)
        self.shown: list[Shown] = []

    @property
    def context(self) -> dict[str, dict]:
        """For metrics.json."""
        return {self.name: asdict(self.settings)}

    def score(self, case: ScoredCase, reconstruct: Reconstruct) -> Scores:
        """Values by key, None where an object fits nowhere. `Unavailable` where X-rays were not made by us."""
        bench = _Bench.of(case, reconstruct)
        without = bench.reconstructed(bench.hu)
        clear = clearance(bench.hu, bench.step)
        scores: Scores = {}
        first = not self.shown
        for planted in self.objects:
            rng = np.random.default_rng([self.settings.seed, *f"{planted.key} {case.case_id}".encode()])
            place = choose_place(planted, bench.hu, clear, bench.step, self.settings.displacement, rng)
            own: Scores = dict.fromkeys(("contrast", "dprime", "auc", "error_mm"))
            if place is not None:
                own |= self._of_object(bench, planted, place, without, clear, rng, first)
            scores |= {f"{self.name}_{score}_{planted.key}": value for score, value in own.items()}
        return scores

    def _of_object(
        self,
        bench: "_Bench",
        planted: Planted,
        place: Place,
        without: np.ndarray,
        clear: np.ndarray,
        rng: np.random.Generator,
        show: bool,
    ) -> Scores:
        # Put it in, and see what the reconstruction gains.
        at = place.voxel[::-1] * bench.step
        shares, hu = bench.with_object(planted, at)
        true = bench.averaged(hu) - bench.averaged(bench.hu)
        difference = bench.reconstructed(hu) - without
        template = Template.of(bench.averaged(shares))
        if not template.shares @ true[tuple(template.voxels.T)]:
            return {}  # in metal, which the window clips
        own = float(template.mean(difference, np.zeros((1, 3), int))[0])

        # Compare with the same shape elsewhere, moved by whole voxels of the reconstruction.
        offsets = planted.places(clear, bench.step) - place.voxel
        apart = np.linalg.norm(offsets, axis=1) * bench.step >= 2 * planted.reach
        offsets = offsets[apart & (offsets % bench.factor == 0).all(1)] // bench.factor
        offsets = offsets[rng.permutation(len(offsets))[:MATCHED]]
        dprime, auc = detectability(own, template.mean(difference, offsets))

        # Find it, or how far it seems to have moved.
        seen, step = centroid(difference, bench.step * bench.factor), bench.step
        expected = at - (bench.factor - 1) / 2 * step  # from the centre of the first block
        if planted.contrast is None and seen is not None:
            moved = bench.reconstructed(bench.with_object(planted, at + place.moved)[1]) - without
            expected, seen = seen + place.moved, centroid(moved, bench.step * bench.factor)
        if show:
            z = int(place.voxel[0] // bench.factor)
            made = (without + difference)[z], difference[z]
            self.shown.append(
                Shown(bench.case.case_id, planted.key, bench.averaged(hu)[z], true[z], *made, bench.case.spacing)
            )
        error = None if seen is None else float(np.linalg.norm(seen - expected))
        return {"contrast": recovered(difference, true, template), "dprime": dprime, "auc": auc, "error_mm": error}


@dataclass(frozen=True)
class _Bench:
    """A case to plant objects in. hu: as stored, ``step`` mm a voxel; the model's voxel is ``factor`` of these wide."""

    case: ScoredCase
    hu: Num[np.ndarray, "n n n"]
    step: float
    factor: int
    acquisition: Acquisition
    reconstruct: Reconstruct

    @classmethod
    def of(cls, case: ScoredCase, reconstruct: Reconstruct) -> "_Bench":
        if case.path is None:
            raise Unavailable(NAME, "the data have no cameras", "evaluate a prepared folder")
        hu = np.array(load_array(case.path, "volume"))
        factor = len(hu) // case.volume.shape[-1]
        step = case.spacing[0] / factor
        try:
            root, purpose = case.path.parent.parent, "metrics.families=[planted]"
            acquisition = Acquisition.of_case(root, case.case_id, step, purpose, case.views)
        except UserError as error:
            reason, _, remedy = str(error).rpartition("; ")
            raise Unavailable(NAME, reason, remedy) from error
        return cls(case, hu, step, factor, acquisition, reconstruct)

    def with_object(self, planted: Planted, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the voxels that an object at (x, y, z) mm fills, and the CT with it."""
        shares = planted.shares(at, self.hu.shape, self.step)
        return shares, planted.put(self.hu, shares, self.case.window)

    def averaged(self, volume: np.ndarray) -> Float[np.ndarray, "m m m"]:
        """At the model's size."""
        return block_mean(volume, self.factor, np.float64)

    def reconstructed(self, hu: np.ndarray) -> Float[np.ndarray, "m m m"]:
        """HU of the reconstruction from the X-rays of a CT."""
        images = self.acquisition.render(torch.from_numpy(hu.astype(np.float32)), reduced=False)
        pair = {
            view: torch.from_numpy(block_mean(image.numpy(), self.factor, np.float64)).float()
            for view, image in images.items()
        }
        return denormalize_hu(self.reconstruct(pair)[0].double().numpy(), self.case.window)
