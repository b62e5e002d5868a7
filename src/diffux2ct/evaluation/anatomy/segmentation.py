"""Dice per structure, as a segmentation network finds it on true and on reconstructed volumes (Table 2)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from diffux2ct.errors import UserError
from diffux2ct.evaluation.contracts import EvaluationDataset
from diffux2ct.intensity import normalize_hu
from diffux2ct.types import Volume

FOREGROUND, AVERAGE = "foreground", "average"
Scores = dict[str, float | None]


@runtime_checkable
class Segmenter(Protocol):
    """See `diffux2ct.reconstructors.segmentation.SegmentationTrainable`."""

    structures: tuple[str, ...]

    def segment(self, volume: Volume) -> Tensor:
        """Volumes [B, 1, D, H, W] in [-1, 1] -> classes [B, D, H, W], 0 for the background."""
        ...


def dice_scores(
    prediction: UInt8[np.ndarray, "d h w"], truth: UInt8[np.ndarray, "d h w"], structures: Sequence[str]
) -> Scores:
    """Dice of each structure, and of all of them as one (``foreground``), in one volume.

    2 |A and B| / (|A| + |B|); 0 where only one of both has the structure, None where neither has it.
    """

    def dice(a: np.ndarray, b: np.ndarray) -> float | None:
        size = int(a.sum()) + int(b.sum())
        return 2.0 * int((a & b).sum()) / size if size else None

    scores = {name: dice(prediction == k, truth == k) for k, name in enumerate(structures, start=1)}
    return scores | {FOREGROUND: dice(prediction > 0, truth > 0)}


def mean_scores(rows: Iterable[Scores], structures: Sequence[str]) -> Scores:
    """Means over volumes (those with a score), and their mean over structures as ``average``."""
    rows = list(rows)

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    means = {name: mean(row[name] for row in rows) for name in (*structures, FOREGROUND)}
    foreground = means.pop(FOREGROUND)
    return means | {AVERAGE: mean(means.values()), FOREGROUND: foreground}


def evaluate_segmentation(
    segmenter: Segmenter,
    dataset: EvaluationDataset,
    reconstructions: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Segment each case's true volume and its reconstruction, if any, and compare both with its labels.

    dataset: gives "labels" of the segmenter's structures. reconstructions: a folder of <case_id>.nii.gz in HU, on the
    cases' grids, as an evaluation leaves it; cases without one are left out of both scores.

    Returns {"structures", "num_cases", "true": means, "reconstructed": means (with reconstructions), "cases": [...]}.
    Raises UserError where a reconstruction is of no case of the dataset or on another grid, and where there is none.
    """
    folder = None if reconstructions is None else Path(reconstructions)
    indices = range(len(dataset)) if folder is None else _reconstructed(folder, dataset)
    read: dict[str, Callable[[int], Tensor]] = {"true": lambda index: dataset[index]["volume"]}
    if folder is not None:
        read["reconstructed"] = lambda index: read_reconstruction(folder, dataset, index)
    cases = []
    for index in tqdm(indices, desc="segment", unit="case"):
        truth = dataset[index]["labels"].numpy()
        row: dict[str, Any] = {"case_id": dataset.cases[index].case_id}
        for source, volume in read.items():
            with torch.inference_mode():
                classes = segmenter.segment(volume(index)[None].to(device))[0].to(torch.uint8)
            row[source] = dice_scores(classes.cpu().numpy(), truth, segmenter.structures)
        cases.append(row)
    means = {source: mean_scores((row[source] for row in cases), segmenter.structures) for source in read}
    return {"structures": list(segmenter.structures), "num_cases": len(cases), **means, "cases": cases}


def read_reconstruction(folder: Path, dataset: EvaluationDataset, index: int) -> Float[Tensor, "1 d h w"]:
    """The reconstruction of a case, in [-1, 1]. UserError unless it lies on the case's grid."""
    # SimpleITK is needed here only.
    from diffux2ct.data.io.volume import read_own_ct

    case = dataset.cases[index]
    path = folder / f"{case.case_id}.nii.gz"
    ct = read_own_ct(path)
    shape = tuple(dataset[index]["volume"].shape[1:])
    near = {"rtol": 1e-5, "atol": 1e-3 * min(case.spacing)}  # NIfTI keeps its affine in single precision
    same = np.allclose(ct.spacing, case.spacing, **near) and np.allclose(ct.origin, case.origin, **near)
    if ct.hu.shape != shape or not same:
        raise UserError(
            f"{path}: {ct.hu.shape} voxels at {_mm(ct.spacing)} mm from {_mm(ct.origin)}, and the case, as the network "
            f"sees it, is {shape} at {_mm(case.spacing)} mm from {_mm(case.origin)}; give the data set that was "
            "evaluated as root=, and a network that was trained at this size"
        )
    return torch.from_numpy(np.asarray(normalize_hu(ct.hu, dataset.window), dtype=np.float32))[None]


def dice_table(result: Mapping[str, Any]) -> str:
    """The console's table of `evaluate_segmentation`'s result."""
    sources = [source for source in ("true", "reconstructed") if source in result]
    lines = [f"{'Dice':16}" + "".join(f"{source:>15}" for source in sources)]
    for name in (*result["structures"], AVERAGE, FOREGROUND):
        scores = [result[source][name] for source in sources]
        lines.append(f"{name:16}" + "".join("              -" if s is None else f"{s:15.3f}" for s in scores))
    return "\n".join([*lines, f"means over {result['num_cases']} cases; foreground: all structures as one"])


def _reconstructed(folder: Path, dataset: EvaluationDataset) -> list[int]:
    """Indices of the cases that have a reconstruction."""
    found = {path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")}
    if not found:
        raise UserError(f"{folder}: no reconstructions (*.nii.gz) here; give the folder of an evaluation")
    known = {case.case_id: index for index, case in enumerate(dataset.cases)}
    if strange := sorted(found - set(known)):
        raise UserError(
            f"{folder}: {strange[0]} is no labelled case of the data set's split; give the evaluated data set as "
            "root= and split="
        )
    return sorted(known[case_id] for case_id in found)


def _mm(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
