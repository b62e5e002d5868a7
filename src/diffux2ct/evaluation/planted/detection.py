"""Scores of a planted object: the part of it that comes back, how far it stands out, and how far it is off."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffux2ct.evaluation.metric import Metric, computes_keys

MATCHED = 64
"""Places elsewhere in the body that an object is compared with, at most."""

LEAST_MATCHED = 8
"""With fewer there is neither d' nor AUC."""

LEAST_HU = 1.0
"""The unit in which CTs are stored: no spread counts as less, and a fainter difference has no position."""

GROUP = "Planted objects"

SCORES = {
    "contrast": ("contrast recovered", "", True, "mean difference inside over the planted one; 1: all comes back"),
    "dprime": ("d'", "", True, "difference at the object, in standard deviations of that at other places of the body"),
    "auc": ("AUC", "", True, "probability that the object's difference exceeds that of another place; 0.5: unseen"),
    "error_mm": ("localisation error", "mm", False, "distance of the difference's centroid from the object's"),
}
"""Title, unit, direction and meaning of each score of an object."""


@computes_keys
def planted_metric(key: str) -> Metric | None:
    """The record of "planted_auc_10mm", "planted_error_mm_screw" and the like."""
    parts = re.fullmatch(rf"planted_({'|'.join(SCORES)})_(screw|[\d.e+]+mm)", key)
    if parts is None:
        return None
    score, name = parts.groups()
    title, unit, larger, about = SCORES[score]
    if (score, name) == ("error_mm", "screw"):
        title, about = "displacement error", "distance of the displacement seen from the true one"
    beside = f"planted_contrast_{name}" if score == "error_mm" else ""
    return Metric(key, f"{heading(name)}, {title}", unit, larger, about, GROUP, floor=False, beside=beside)


def heading(name: str) -> str:
    """An object's name in a table: "Sphere 10 mm"."""
    return "Screw" if name == "screw" else f"Sphere {name.removesuffix('mm')} mm"


@dataclass(frozen=True)
class Template:
    """An object on the model's grid. shares: of each voxel that it fills. voxels: (z, y, x) of those it touches."""

    shares: Float[np.ndarray, "n"]
    voxels: Int[np.ndarray, "n 3"]

    @classmethod
    def of(cls, shares: Float[np.ndarray, "d h w"]) -> "Template":
        """From the shares of all voxels."""
        return cls(shares[shares > 0], np.argwhere(shares > 0))

    def mean(self, difference: Float[np.ndarray, "d h w"], offsets: Int[np.ndarray, "m 3"]) -> Float[np.ndarray, "k"]:
        """Mean difference inside the object moved by each of ``offsets`` (z, y, x), but those out of the volume."""
        at = self.voxels + offsets[:, None]
        at = at[((at >= 0) & (at < difference.shape)).all((1, 2))]
        return difference[tuple(np.moveaxis(at, -1, 0))] @ self.shares / self.shares.sum()


def recovered(difference: Float[np.ndarray, "d h w"], true: Float[np.ndarray, "d h w"], template: Template) -> float:
    """Mean of the reconstruction's difference inside the object over that of the planted one."""
    here = np.zeros((1, 3), int)
    return float(template.mean(difference, here)[0] / template.mean(true, here)[0])


def detectability(own: float, elsewhere: Float[np.ndarray, "k"]) -> tuple[float | None, float | None]:
    """d' and AUC of the difference at the object against those at matched places; None with too few of these."""
    if len(elsewhere) < LEAST_MATCHED:
        return None, None
    dprime = (own - elsewhere.mean()) / max(float(elsewhere.std(ddof=1)), LEAST_HU)
    return float(dprime), float(np.mean(own > elsewhere) + np.mean(own == elsewhere) / 2)


def centroid(difference: Float[np.ndarray, "d h w"], step: float) -> Float[np.ndarray, "3"] | None:
    """Centroid (x, y, z) mm, from the first voxel's centre, of a difference above half its maximum.

    None where it nowhere reaches ``LEAST_HU``.
    """
    if (peak := float(difference.max())) < LEAST_HU:
        return None
    weights = (difference - peak / 2).clip(0)
    voxels = np.argwhere(weights > 0)
    heavy = weights[weights > 0]
    return (heavy @ voxels / heavy.sum())[::-1] * step
