"""Do the metrics move as they should? Answers of known badness, scored like reconstructions.

    python benchmarks/metric_behaviour.py                    # six phantoms at 128^3, made on the spot
    python benchmarks/metric_behaviour.py data/lidc_idri     # the cases of a prepared folder, all splits

Each case is answered by itself (perfect), by the mean of the other patients' volumes, by itself blurred (Gaussian,
sigma 1 and 2 voxels), by itself shifted by two voxels towards x (the edge's values fill the gap), and by the next
patient's volume (shuffled). Prints a Markdown table of means over cases and writes a row a case and answer.

`METRICS` are functions (prediction, truth, window) -> {name: value or None} of volumes [1, D, H, W] in [-1, 1];
`SET_METRICS` are functions (predictions, truths, window) -> {name: value} of lists of them, scored once an answer.
Add to either what else is to be judged.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from _common import HERE, skip, write_csv
from diffux2ct.data.dataset import PreparedDataset
from diffux2ct.data.phantom import make_phantom
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric_info import metric_info
from diffux2ct.evaluation.protocols import protocol_named, score
from diffux2ct.geometry.hounsfield import HU_WINDOW, Window, normalize_hu

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Case:
    name: str
    patient: str
    volume: Tensor  # [1, D, H, W] in [-1, 1]


def distortion(protocol: str) -> Callable[[Tensor, Tensor, Window], Values]:
    return lambda prediction, truth, window: score(prediction, truth, window, protocol_named(protocol))[0]


METRICS: dict[str, Callable[[Tensor, Tensor, Window], Values]] = {"distortion": distortion("paper")}
SET_METRICS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor], Window], Values]] = {}


def mean_of_others(case: Case, cases: Sequence[Case]) -> Tensor:
    return torch.stack([other.volume for other in cases if other.patient != case.patient]).mean(dim=0)


def blurred(sigma: float) -> Callable[[Case, Sequence[Case]], Tensor]:
    def answer(case: Case, cases: Sequence[Case]) -> Tensor:
        # HU are linear in the volume's values, so this is the blur of the (clipped) scan.
        return torch.from_numpy(ndimage.gaussian_filter(case.volume[0].numpy(), sigma, mode="nearest"))[None]

    return answer


def shifted(voxels: int) -> Callable[[Case, Sequence[Case]], Tensor]:
    def answer(case: Case, cases: Sequence[Case]) -> Tensor:
        volume = case.volume
        return torch.cat([volume[..., :1].expand(*volume.shape[:-1], voxels), volume[..., :-voxels]], dim=-1)

    return answer


def shuffled(case: Case, cases: Sequence[Case]) -> Tensor:
    start = cases.index(case)
    turn = (cases[(start + k) % len(cases)] for k in range(1, len(cases)))
    return next(other.volume for other in turn if other.patient != case.patient)


ANSWERS: dict[str, Callable[[Case, Sequence[Case]], Tensor]] = {
    "perfect": lambda case, cases: case.volume,
    "blurred, sigma 1": blurred(1.0),
    "blurred, sigma 2": blurred(2.0),
    "shifted by 2": shifted(2),
    "mean volume": mean_of_others,
    "shuffled": shuffled,
}


def phantoms(count: int, size: int) -> tuple[list[Case], Window]:
    volumes = [normalize_hu(make_phantom(0, k, size=size, extent_mm=2.0 * size).hu) for k in range(count)]
    cases = [Case(f"phantom_{k}", f"{k}", torch.from_numpy(v)[None]) for k, v in enumerate(volumes)]
    return cases, HU_WINDOW


def prepared(root: Path, max_cases: int | None) -> tuple[list[Case], Window]:
    cases: list[Case] = []
    window: Window = HU_WINDOW
    for split in ("train", "val", "test"):
        try:
            data = PreparedDataset(root, split)
        except UserError as error:
            if "empty" in str(error) or "no cases" in str(error):
                continue
            skip(error)
        window = data.window
        cases += [
            Case(record.case_id, record.patient, data[k]["volume"]) for k, record in enumerate(data.cases)
        ]
    return cases[:max_cases], window


def rows_of(cases: Sequence[Case], window: Window) -> list[dict[str, Any]]:
    """One row a case and answer, and for set metrics one row an answer under the case ``all``."""
    rows = []
    for answer, make in ANSWERS.items():
        predictions = [make(case, cases) for case in cases]
        for case, prediction in zip(cases, predictions, strict=True):
            values = [metric(prediction, case.volume, window) for metric in METRICS.values()]
            rows.append(
                {"answer": answer, "case": case.name} | {k: v for each in values for k, v in each.items()}
            )
        truths = [case.volume for case in cases]
        for metric in SET_METRICS.values():
            rows.append({"answer": answer, "case": "all"} | dict(metric(predictions, truths, window)))
        print(f"scored: {answer}", flush=True)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the cases that have a value: a line a metric, a column an answer."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("answer", "case")))
    lines = ["| metric | " + " | ".join(ANSWERS) + " |", "|---|" + "---:|" * len(ANSWERS)]
    for name in names:
        info = metric_info(name)
        title = (
            name
            if info is None
            else f"{info.title} {'↑' if info.larger_is_better else '↓'} {info.unit}".strip()
        )
        cells = []
        for answer in ANSWERS:
            values = [row[name] for row in rows if row["answer"] == answer and row.get(name) is not None]
            digits = 3 if info is None or info.unit == "" else 1
            cells.append(f"{np.mean(values):.{digits}f}" if values else "–")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="a prepared folder; none: phantoms")
    parser.add_argument("--phantoms", type=int, default=6, help="how many, without a folder")
    parser.add_argument("--size", type=int, default=128, help="voxels per side of a phantom")
    parser.add_argument("--max-cases", type=int, default=None, help="of a folder")
    parser.add_argument("--out", type=Path, default=HERE / "metric_behaviour.csv")
    args = parser.parse_args()
    if args.folder is None:
        cases, window = phantoms(args.phantoms, args.size)
    else:
        cases, window = prepared(args.folder, args.max_cases)
    if len({case.patient for case in cases}) < 2:
        skip(f"{args.folder}: shuffling needs at least two patients")
    with torch.inference_mode():
        rows = rows_of(cases, window)
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(args.out, [{name: row.get(name) for name in names} for row in rows])
    print(f"\nMeans over {len(cases)} cases.\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
