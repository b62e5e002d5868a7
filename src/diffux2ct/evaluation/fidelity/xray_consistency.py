"""Consistency of a reconstruction with its X-rays: it is projected again, through the same camera.

The residual is in line integrals (dimensionless: attenuation per mm times mm), the unit in which the prepared folder
keeps its X-rays; 1 mm of water is 0.022 with plastimatch's rule. What a reconstruction gets wrong along the rays, in
depth, does not show here: a small residual is necessary, not sufficient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from diffux2ct.data.prepared.writer import read_case
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import Metric, computes
from diffux2ct.intensity import block_mean
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.drr import render_pair
from diffux2ct.xray.pose import Pose


@dataclass(frozen=True)
class ViewResidual:
    """One view: the re-projected X-ray and its departure from the stored one.

    image, stored: line integrals [rows = z upward, columns], dimensionless. mean_absolute, rms: of image - stored.
    """

    image: Float[np.ndarray, "v u"]
    stored: Float[np.ndarray, "v u"]

    @property
    def mean_absolute(self) -> float:
        """Mean of |image - stored| over the pixels."""
        return float(np.abs(self._error()).mean())

    @property
    def rms(self) -> float:
        """Square root of the mean of (image - stored)^2 over the pixels."""
        return float(np.sqrt(np.square(self._error()).mean()))

    def _error(self) -> np.ndarray:
        return self.image.astype(np.float64) - self.stored.astype(np.float64)


class CaseXrays:
    """A prepared case's X-rays, and how they were made: camera, poses, projector and attenuation of its case.json.

    path: the case's folder. size: voxels per side of the volumes to project, the stored size divided by a whole number.
    At a smaller size volumes are projected onto the stored X-rays' pixels, and both are averaged in blocks, as
    ``PreparedDataset`` averages. Blocks of voxels then attenuate a little differently than their voxels did
    (air at -800 HU, edges of bone), so that the truth itself has a residual: see ``residuals`` of the true volume.

    Raises UserError where the folder is not a case, and where ``unavailable`` has a reason.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        path = Path(path)
        record = read_case(path.parent.parent, path.name)
        if record is None:
            raise UserError(f"{path / 'case.json'}: not found; prepare the case again")
        if reason := unavailable(record):
            raise UserError(f"{path}: {reason}")
        self._stored_size = int(record["size"])
        self.size = self._stored_size if size is None else int(size)
        if self.size < 1 or self._stored_size % self.size:
            raise UserError(
                f"{path}: stored with {self._stored_size} voxels per side, which {self.size} does not divide"
            )
        self._factor = self._stored_size // self.size
        self._spacing = float(record["spacing"][0]) * self._factor
        self._camera = Camera.from_dict(record["camera_geometry"])
        self._projector, self._attenuation = record["projector"], record["attenuation"]
        poses = record.get("poses")
        self._poses = None if poses is None else {view: Pose.from_dict(pose) for view, pose in poses.items()}
        self.stored = {view: _mean(_load(path / f"{view}.npy"), self._factor) for view in VIEWS}

    def residuals(self, hu: Num[np.ndarray, "d h w"]) -> dict[str, ViewResidual]:
        """Project a volume as this case's was, and compare: {"frontal", "lateral"}.

        hu: HU on the case's grid at ``size``, clipped to its window as the truth was. The case's own volume.npy gives
        its X-rays to the last bit, or nearly: sums are in single precision.
        """
        if hu.shape != (self.size,) * 3:
            raise ValueError(f"volume {hu.shape}, where the case has {self.size} voxels per side")
        images = render_pair(
            hu,
            self._spacing,
            self._camera,
            self._stored_size,
            projector=self._projector,
            attenuation=self._attenuation,
            jitter=self._poses,
        )
        return {view: ViewResidual(_mean(images[view], self._factor), self.stored[view]) for view in VIEWS}


def unavailable(record: Mapping[str, Any]) -> str | None:
    """The reason why a case (its case.json) cannot be projected again as its X-rays were; None where it can.

    X2CT-GAN's published files hold X-rays of other HU (24 too high), from a finer cube, divided by an unknown maximum:
    any residual would be of that, not of the reconstruction.
    """
    if record.get("xrays") == "stored" and record.get("xrays_scale") == "estimated":
        return (
            "its X-rays came from a file without their scale, so there are no line integrals to compare with; "
            "import it with dataset.prepare.xrays=rendered"
        )
    missing = [key for key in ("camera_geometry", "projector", "attenuation") if not record.get(key)]
    return f"case.json has no {', '.join(missing)}; prepare it again" if missing else None


def _residual(view: str, key: str, title: str, about: str) -> Metric:
    return Metric(
        f"xray_residual_{key}{view}",
        f"X-ray residual, {view}{title}",
        larger_is_better=False,
        group="X-ray consistency",
        about=f"{about} of re-projected and given line integrals; the truth itself has one below its full size",
    )


@computes(
    *(_residual(view, "", "", "mean absolute difference") for view in VIEWS),
    *(_residual(view, "rms_", ", RMS", "root mean square difference") for view in VIEWS),
)
def residual_scores(residuals: Mapping[str, ViewResidual]) -> dict[str, float]:
    """{"xray_residual_frontal", "xray_residual_rms_frontal", ... lateral}, line integrals."""
    scores = {}
    for view, residual in residuals.items():
        scores |= {f"xray_residual_{view}": residual.mean_absolute, f"xray_residual_rms_{view}": residual.rms}
    return scores


def _mean(image: np.ndarray, factor: int) -> np.ndarray:
    return block_mean(image, factor, np.float64).astype(np.float32)


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged; delete {path.parent} and prepare it again") from error
