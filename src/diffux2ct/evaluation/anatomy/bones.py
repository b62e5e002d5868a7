"""Bone of a reconstruction against the true one: Dice and 95 % Hausdorff distance.

From a segmentation network that sees both volumes (``structure_scores``), and from a threshold, which needs no network
and no labels but cannot tell structures apart (``fixed_hu_bone``).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Num, UInt8
from scipy import ndimage
from torch import Tensor

from diffux2ct.evaluation.anatomy.segmentation import FOREGROUND, Scores, Segmenter, dice_scores
from diffux2ct.evaluation.anatomy.surfaces import Spacing, hd95
from diffux2ct.evaluation.metric import Metric, computes, computes_keys
from diffux2ct.reconstructors.precision import autocast

BONE_HU = 226.0
"""Lower bound of the preset "Bone (CT)" of Mimics (Materialise), 226 to 3071 HU, which much of the literature uses."""

_bones = partial(Metric, group="Bones")
_HD95_BONE = f"95% Hausdorff distance of the surfaces of bone above {BONE_HU:g} HU"

MIN_PIECE_MM3 = 1000.0
"""Smaller connected pieces of what is above the threshold are noise, calcifications and bowel content, not bone."""


def fixed_hu_bone(
    hu: Num[np.ndarray, "d h w"],
    spacing: Spacing,
    threshold: float | int = BONE_HU,
    min_piece_mm3: float | int = MIN_PIECE_MM3,
) -> Bool[np.ndarray, "d h w"]:
    """Voxels of at least ``threshold`` HU in pieces (connected by faces) of at least ``min_piece_mm3``.

    spacing: (x, y, z) mm. Metal is as dense as bone, and so are vessels full of contrast agent: they are in it, in the
    truth as in the reconstruction. The spongy inside of vertebrae (100 to 250 HU) is mostly not.
    """
    dense = hu >= threshold
    pieces, _ = ndimage.label(dense)  # type: ignore[misc]
    large = np.bincount(pieces.ravel()) * float(np.prod(spacing)) >= min_piece_mm3
    large[0] = False
    return large[pieces]  # type: ignore[index]


@computes(
    _bones("dice_bone", "Dice bone", "", True, f"overlap of what exceeds {BONE_HU:g} HU in large pieces"),
    _bones("hd95_bone", "HD95 bone", "mm", False, _HD95_BONE, beside="dice_bone"),
)
def bone_scores(
    prediction_hu: Num[np.ndarray, "d h w"], truth_hu: Num[np.ndarray, "d h w"], spacing: Spacing
) -> Scores:
    """{"dice_bone", "hd95_bone"} of ``fixed_hu_bone`` in both volumes; HD95 in mm.

    Dice is None where neither has bone, 0 where one has; HD95 is None unless both have. spacing: (x, y, z) mm.
    """
    prediction, truth = (fixed_hu_bone(hu, spacing) for hu in (prediction_hu, truth_hu))
    size = int(prediction.sum()) + int(truth.sum())
    return {
        "dice_bone": 2.0 * int((prediction & truth).sum()) / size if size else None,
        "hd95_bone": hd95(prediction, truth, spacing),
    }


@computes_keys
def structure_metric(key: str) -> Metric | None:
    """The record of dice_<structure>, hd95_<structure> and their variants labels_ and ceiling_; None of other keys."""
    measure, _, structure = key.partition("_")
    if measure not in ("dice", "hd95") or not structure:
        return None
    variant = next((v for v in ("labels", "ceiling") if structure.startswith(f"{v}_")), "")
    name = structure.removeprefix(f"{variant}_").replace("_", " ")
    if variant == "labels":
        about = f"the {name}: a network's segmentation of the reconstruction against the true labels"
    elif variant == "ceiling":
        about = f"the {name}: a network's segmentation of the true volume against the labels, its best"
    elif measure == "dice":
        about = f"overlap of the {name} as a network segments it in both volumes"
    else:
        about = f"95% Hausdorff distance of the surfaces of the {name}, segmented in both volumes"
    title, unit = ("Dice", "") if measure == "dice" else ("HD95", "mm")
    title += f" {name}{variant and f', {variant}'}"
    beside = f"dice_{structure}" if measure == "hd95" else ""
    return _bones(key, title, unit, measure == "dice", about, floor=variant != "ceiling", beside=beside)


def structure_scores(
    prediction: UInt8[np.ndarray, "d h w"],
    truth: UInt8[np.ndarray, "d h w"],
    structures: Sequence[str],
    spacing: Spacing,
    suffix: str = "",
) -> Scores:
    """Dice and HD95 (mm) of each structure, k where the k-th is, and of all as one (``foreground``).

    Keys: dice<suffix>_<structure>, hd95<suffix>_<structure>. A structure in neither: both None; in one only: Dice 0 and
    HD95 None, as no distance is defined. spacing: (x, y, z) mm.
    """
    dice = dice_scores(prediction, truth, structures)
    scores = {f"dice{suffix}_{name}": score for name, score in dice.items()}
    for name, k in (*((name, k) for k, name in enumerate(structures, start=1)), (FOREGROUND, 0)):
        masks = [classes == k if k else classes > 0 for classes in (prediction, truth)]
        scores[f"hd95{suffix}_{name}"] = hd95(masks[0], masks[1], spacing)
    return scores


def segmented_scores(
    segmented_prediction: UInt8[np.ndarray, "d h w"],
    segmented_truth: UInt8[np.ndarray, "d h w"],
    labels: UInt8[np.ndarray, "d h w"] | None,
    structures: Sequence[str],
    spacing: Spacing,
) -> Scores:
    """All scores of one case from a network's classes (``segment``) of the reconstruction and of the true volume.

    dice_<s>, hd95_<s>: between the two segmentations, so that the network's own errors cancel and no labels are needed.
    With labels (classes of the same structures): dice_labels_<s>, hd95_labels_<s>, the reconstruction's segmentation
    against them, as in Table 2 of the paper; dice_ceiling_<s>, hd95_ceiling_<s>, the true volume's against them: what
    the network can do at best.
    """
    pair = structures, spacing
    scores = structure_scores(segmented_prediction, segmented_truth, *pair)
    if labels is not None:
        scores |= structure_scores(segmented_prediction, labels, *pair, suffix="_labels")
        scores |= structure_scores(segmented_truth, labels, *pair, suffix="_ceiling")
    return scores


def segment(
    segmenter: Segmenter, volume: Float[Tensor, "1 d h w"], device: torch.device | str = "cpu", precision: str = "fp32"
) -> UInt8[np.ndarray, "d h w"]:
    """Classes of one volume in [-1, 1], as a segmentation network (in eval mode) finds them.

    precision: "bf16" (autocast: three times faster on a CPU that has it, some voxels of edges change) or "fp32".
    """
    with torch.inference_mode(), autocast(precision, device):
        classes = segmenter.segment(volume[None].to(device))[0].to(torch.uint8)
    return classes.cpu().numpy()
