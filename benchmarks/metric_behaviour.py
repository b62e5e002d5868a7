"""Do the metrics move as they should? Answers of known badness, scored like reconstructions.

    python benchmarks/metric_behaviour.py                    # six phantoms at 128^3, made on the spot
    python benchmarks/metric_behaviour.py data/lidc_idri     # the cases of a prepared folder, all splits
    python benchmarks/metric_behaviour.py data/crops --families distortion lpips distribution

Each case is answered by itself (perfect), by the mean of the other patients' volumes, by itself blurred (Gaussian,
sigma 1 and 2 voxels), by itself shifted by two voxels towards x (the edge's values fill the gap), and by another
patient's volume (shuffled). The metrics are those of evaluate.py, by family; distribution (distances between sets of
features of the 3D CT encoder) is slow and asked for by name. Prints a Markdown table of means over the cases that have
a value, and writes a row a case and answer; metrics of a whole set stand under the case ``all``.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from _common import HERE, skip, write_csv
from diffux2ct.data.phantom import generate_dataset
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.metric_set import FAMILIES, MetricSet
from diffux2ct.evaluation.perception.weights import Unavailable
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.set_metrics import CtDistribution, SetFamily

DEFAULT_FAMILIES = ("distortion", "lpips", "bones", "implants", "vertebrae", "xrays")


@dataclass(frozen=True)
class Case:
    patient: str
    scored: ScoredCase

    @property
    def volume(self) -> Tensor:
        """[1, D, H, W] in [-1, 1]."""
        return self.scored.volume


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
    # From half-way round, so that cases of one patient, which stand together, get different volumes.
    start, count = list(cases).index(case), len(cases)
    turn = (cases[(start + count // 2 + k) % count] for k in range(count))
    return next(other.volume for other in turn if other.patient != case.patient)


ANSWERS: dict[str, Callable[[Case, Sequence[Case]], Tensor]] = {
    "perfect": lambda case, cases: case.volume,
    "blurred, sigma 1": blurred(1.0),
    "blurred, sigma 2": blurred(2.0),
    "shifted by 2": shifted(2),
    "mean volume": mean_of_others,
    "shuffled": shuffled,
}


def read(root: Path, max_cases: int | None = None) -> list[Case]:
    cases: list[Case] = []
    for split in ("train", "val", "test"):
        try:
            data = PreparedDataset(root, split)
        except UserError as error:
            if "empty" in str(error) or "no cases" in str(error):
                continue
            skip(error)
        cases += [
            Case(record.patient, ScoredCase.of(record, data[k]["volume"], data.window))
            for k, record in enumerate(data.cases)
        ]
    return cases[:max_cases]


class Remembered:
    """An encoder that sees each volume once, however many answers it is part of."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.name, self.seen = encoder, encoder.name, {}

    def features(self, volumes_hu: Tensor, spacing: tuple[float, float, float]) -> Tensor:
        key = hash(volumes_hu.numpy().tobytes())
        if key not in self.seen:
            self.seen[key] = self.encoder.features(volumes_hu, spacing)
        return self.seen[key]


def rows_of(cases: Sequence[Case], families: Sequence[str]) -> list[dict[str, Any]]:
    """A row a case and answer; of the families that score sets, one row an answer under the case ``all``."""
    metrics = MetricSet.make(families)
    sets: dict[str, list[SetFamily]] = {answer: [] for answer in ANSWERS}
    for family in metrics.set_families:
        if isinstance(family, CtDistribution):
            encoder = Remembered(family.encoder)
            for answer in ANSWERS:
                sets[answer].append(CtDistribution(encoder, "cpu"))
    table: dict[str, list[dict[str, Any]]] = {answer: [] for answer in ANSWERS}
    unavailable = dict(metrics.unavailable)
    for case in tqdm(cases, unit="case"):
        volumes = torch.cat([make(case, cases) for make in ANSWERS.values()])
        rows = [{"answer": answer, "case": case.scored.case_id} for answer in ANSWERS]
        for family in metrics.families:
            try:
                scores = family.score(case.scored, volumes)
            except Unavailable as error:
                unavailable[family.name] = error.reason
                continue
            rows = [row | score for row, score in zip(rows, scores, strict=True)]
        for row, volume in zip(rows, volumes, strict=True):
            table[row["answer"]].append(row)
            for family in sets[row["answer"]]:
                family.add(case.scored, volume[None], case.volume)
    for answer, members in sets.items():
        table[answer] += [{"answer": answer, "case": "all"} | family.finish()[0] for family in members]
    for name, reason in unavailable.items():
        print(f"{name}: unavailable: {reason}")
    return [row for rows in table.values() for row in rows]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a metric, a column an answer; in brackets how many cases have a value, where not all have."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("answer", "case")))
    cases = len({row["case"] for row in rows} - {"all"})
    lines = ["| metric | " + " | ".join(ANSWERS) + " |", "|---|" + "---:|" * len(ANSWERS)]
    for name in names:
        metric = metric_of(name)
        title = f"{metric.title} {('', '↑', '↓')[metric.sign]} {metric.unit}".strip()
        found = {
            answer: [row[name] for row in rows if row["answer"] == answer and row.get(name) is not None]
            for answer in ANSWERS
        }
        if not any(found.values()):
            continue
        digits = 3 if metric.unit == "" else 1
        of_a_set = any(row.get(name) is not None for row in rows if row["case"] == "all")
        cells = [
            (f"{np.mean(values):.{digits}f}" if values else "–")
            + (f" ({len(values)})" if 0 < len(values) < cases and not of_a_set else "")
            for values in found.values()
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a prepared folder; none: phantoms")
    parser.add_argument("--phantoms", type=int, default=6, help="how many, without a folder")
    parser.add_argument("--size", type=int, default=128, help="voxels per side of a phantom, of 2 mm")
    parser.add_argument("--max-cases", type=int, default=None, help="of a folder")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(DEFAULT_FAMILIES))
    parser.add_argument("--out", type=Path, default=HERE / "metric_behaviour.csv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        root = args.folder
        if root is None:
            root, extent = Path(scratch) / "phantoms", 2.0 * args.size
            sizes = {"num_train": 0, "num_val": 0, "num_test": args.phantoms}
            generate_dataset(root, **sizes, size=args.size, extent_mm=extent, seed=0, workers=1)
        cases = read(root, args.max_cases)
        if len({case.patient for case in cases}) < 2:
            skip(f"{root}: shuffling needs at least two patients")
        rows = rows_of(cases, args.families)
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(args.out, [{name: row.get(name) for name in names} for row in rows])
    print(f"\nMeans over {len(cases)} cases.\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
