"""Coverage of calibrated intervals, and error against spread: the scores of a case whose CT was drawn several times."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16
from scipy import ndimage
from scipy.stats import spearmanr

from diffux2ct.data.labels import structure_values
from diffux2ct.evaluation.anatomy.bones import BONE_HU
from diffux2ct.evaluation.fidelity.distortion import TISSUES
from diffux2ct.evaluation.metric import Metric, computes
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.calibration import Calibration
from diffux2ct.evaluation.uncertainty.spread import BONE_VOLUME, VERTEBRA_HEIGHT, VOXELS, CaseSpread, Draws

REGIONS = ("spine", "sacrum", "hips", "femurs", "ribs", "implants")
"""Groups and names of ``data/labels`` whose coverage is reported where a case has them."""

PIECES = {"small": (0.0, 1.0), "medium": (1.0, 10.0), "large": (10.0, np.inf)}
"""Sizes in ml of connected pieces of bone: from (inclusive) and to (exclusive)."""

EDGES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, np.inf)
"""HU, of the bins of spread."""

_metric = partial(Metric, group="Uncertainty", floor=False)


def _coverage(key: str, what: str) -> Metric:
    about = f"share of {what} within the calibrated interval; aim: 1 - alpha, more is too wide"
    return _metric(f"coverage{key and f'_{key}'}", f"Coverage {key.replace('_', ' ')}".strip(), "", True, about)


@computes(
    _coverage("", "the voxels that rays reach"),
    *(_coverage(name, f"the true {'soft tissue' if name == 'soft' else name}") for name in TISSUES),
    *(_coverage(f"label_{name}", f"the labelled {name}") for name in REGIONS),
    *(
        _coverage(f"{name}_bone", f"bone above {BONE_HU:g} HU in pieces of {low:g} to {high:g} ml")
        for name, (low, high) in PIECES.items()
    ),
    _coverage(BONE_VOLUME, f"patients whose volume of bone above {BONE_HU:g} HU, in pieces of 1 ml or more, lies"),
    _coverage(VERTEBRA_HEIGHT, "labelled vertebrae whose height lies"),
    _metric("interval_width", "Interval width", "HU", False, "mean width of the calibrated interval"),
    _metric("spread", "Spread", "HU", False, "mean standard deviation of the draws where rays reach"),
    _metric(
        "spread_rank",
        "Rank correlation of error and spread",
        "",
        True,
        "Spearman's, over voxels: 1 where the draws differ most where their mean errs most",
    ),
)
def coverage_scores(spread: CaseSpread, calibration: Calibration | None) -> dict[str, float | None]:
    """The scores of one case, all but the scalars' over voxels that rays reach; None where undefined.

    calibration: None: no coverage, no width.
    """
    inside, volume = spread.support, spread.volume
    error, std = np.abs(volume.truth - volume.mean)[inside], volume.std[inside]
    constant = error.std() == 0 or std.std() == 0
    scores: dict[str, float | None] = {
        "spread": float(std.mean()),
        "spread_rank": None if constant else float(np.asarray(spearmanr(error, std))[0]),
    }
    if calibration is None:
        return scores
    floor, scale = calibration.rule.floor, calibration.scales[VOXELS]
    low, high = volume.interval(scale, floor, spread.case.window)
    covered = volume.scores(floor) <= scale
    scores["coverage"] = _share(covered, inside)
    scores |= {f"coverage_{name}": _share(covered, inside & where) for name, where in regions(spread.case).items()}
    scores["interval_width"] = float((high - low)[inside].mean())
    for name, values in spread.scores(floor).items():
        if name != VOXELS and name in calibration.scales:
            scores[f"coverage_{name}"] = float((values <= calibration.scales[name]).mean())
    return scores


def regions(case: ScoredCase) -> dict[str, Bool[np.ndarray, "d h w"]]:
    """Masks of the truth's tissues, of its pieces of bone by size, and of its labels, by the keys of their coverage."""
    found = {name: (case.hu >= low) & (case.hu < high) for name, (low, high) in TISSUES.items()}
    pieces = np.asarray(ndimage.label(case.hu >= BONE_HU)[0], dtype=np.intp)  # type: ignore[index]
    sizes = np.bincount(pieces.ravel()) * float(np.prod(case.spacing)) / 1000
    sizes[0] = -1
    for name, (low, high) in PIECES.items():
        found[f"{name}_bone"] = ((sizes >= low) & (sizes < high))[pieces]
    if case.labels is not None:
        found |= {f"label_{name}": np.isin(case.labels, list(structure_values(name))) for name in REGIONS}
    return found


def _share(covered: Bool[np.ndarray, "d h w"], where: Bool[np.ndarray, "d h w"]) -> float | None:
    return float(covered[where].mean()) if where.any() else None


class Uncertainty:
    """Scores cases by their draws, and keeps what the whole set shows: error against spread.

    note: on the calibration, or the reason why there is none.
    """

    def __init__(self, draws: Draws, calibration: Calibration | None = None, note: str = "") -> None:
        self.draws, self.calibration, self.note = draws, calibration, note
        self._bins = np.zeros((3, len(EDGES) - 1))  # by bin of spread: voxels, sum of variances, of squared errors
        self._reached: list[float] = []

    def score(self, spread: CaseSpread) -> dict[str, float | None]:
        """A case's row, see `coverage_scores`; its voxels are taken in."""
        inside, volume = spread.support, spread.volume
        std = volume.std[inside].astype(np.float64)
        squared = np.square(volume.truth - volume.mean)[inside].astype(np.float64)
        place, number = np.digitize(std, EDGES[1:-1]), len(EDGES) - 1
        self._bins += [np.bincount(place, weights, number) for weights in (None, std**2, squared)]
        self._reached.append(float(inside.mean()))
        return coverage_scores(spread, self.calibration)

    def half_width(self, spread: CaseSpread) -> Int16[np.ndarray, "d h w"]:
        """Whole HU of scale * (std + floor), which the window may cut; without a calibration the standard deviation."""
        width = spread.volume.std
        if self.calibration is not None:
            width = self.calibration.scales[VOXELS] * (width + self.calibration.rule.floor)
        return np.rint(width.clip(0, np.iinfo(np.int16).max)).astype(np.int16)

    def about(self) -> dict[str, Any]:
        """For metrics.json: the calibration, and error against spread over all cases.

        ``error_against_spread``: by bin the root mean square of the standard deviation and of the error of the mean,
        HU, and the share of voxels. ``spread_over_error``: of all, 1 where the spread is as large as the error.
        """
        voxels, variance, squared = self._bins
        bins = [
            {"spread": (v / n) ** 0.5, "error": (s / n) ** 0.5, "share": n / float(voxels.sum())}
            for n, v, s in zip(voxels.tolist(), variance.tolist(), squared.tolist(), strict=True)
            if n
        ]
        ratio = float(np.sqrt(variance.sum() / squared.sum())) if squared.sum() else None
        return {
            **self.draws.about(self.calibration, self.note),
            "reached_by_rays": float(np.mean(self._reached)),
            "spread_over_error": ratio,
            "error_against_spread": bins,
        }
