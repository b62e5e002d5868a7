"""The whole metric set for one volume: seconds of each family, as evaluate.py calls it.

    python benchmarks/metric_set.py                    # writes benchmarks/metric_set_cpu.csv

One lumbar phantom with screws, rods and labels at 128^3, prepared on the spot (its X-rays by the default projector),
is answered by itself under a slight blur. Each family scores it from a fresh start (what it needs of the truth
counts): the reconstruction alone, and with the floor, the mean volume, beside it, as an evaluation does, of which the
first case costs more than later ones, since what a segmentation network finds in the floor is kept.
The segmentation network is the V-Net at full width in bf16, as evaluate.py runs it. It is untrained, and its answer,
which would be noise with a surface in every voxel, is replaced by bone above 226 HU in four quarters after it has run.
Loading weights does not count. The sum is of the families that score a case; the encoders of Frechet distances stand
below it. One repetition measures all, in shuffled order; the fastest counts. Wall time means something on an idle
machine only.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor

from _common import HERE, cpu_model, write_csv
from diffux2ct.data.phantom import generate_dataset
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.evaluation.case_metrics import Family
from diffux2ct.evaluation.metric_set import FAMILIES, MetricSet
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.set_metrics import SetFamily
from diffux2ct.models.baselines.vnet import VNet
from diffux2ct.reconstructors.segmentation import SegmentationTrainable
from diffux2ct.training.state import prepare_model

STRUCTURES = ("sacrum", "left_hip", "right_hip", "lumbar_spine")  # Table 2's


class QuarteredBone(SegmentationTrainable):
    """Takes a segmentation network's time, and answers with surfaces of a size that bones have."""

    def segment(self, volume: Tensor) -> Tensor:
        super().segment(volume)
        size = volume.shape[-1]
        upper = (torch.arange(size) >= size // 2).to(torch.uint8)
        quarters = 1 + upper[:, None, None] + 2 * upper
        return (volume[:, 0] > 2 * (226 + 1024) / 2524 - 1) * quarters


def instrumented(root: Path, size: int) -> PreparedDataset:
    """Prepared phantoms of seed 0, the first of them with metal in front."""
    generate_dataset(root, num_train=0, num_val=0, num_test=6, size=size, extent_mm=2.0 * size, seed=0, workers=2)
    return PreparedDataset(root, "test")


def first_with_metal(dataset: PreparedDataset) -> tuple[int, ScoredCase]:
    for index, record in enumerate(dataset.cases):
        case = ScoredCase.of(record, dataset[index]["volume"], dataset.window)
        if case.implants.screws and case.implants.rods:
            return index, case
    raise SystemExit("none of the phantoms has screws and rods")


def families(protocol: str) -> tuple[list[Family], list[SetFamily], dict[str, str]]:
    torch.manual_seed(0)
    segmenter = prepare_model(QuarteredBone(VNet, STRUCTURES), torch.device("cpu"), channels_last=True).eval()
    made = MetricSet.make(FAMILIES, protocol, segmenter=segmenter, precision="bf16")
    return made.families, made.set_families, made.unavailable


def timed(call: Any) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(dataset: PreparedDataset, protocol: str, repeats: int) -> list[dict[str, Any]]:
    """A row a family; the sum of those that score a case; then those of a whole test set."""
    index, _ = first_with_metal(dataset)
    record, truth = dataset.cases[index], dataset[index]["volume"]
    mean = torch.stack([dataset[k]["volume"] for k in range(len(dataset)) if k != index]).mean(dim=0)
    answer = torch.from_numpy(ndimage.gaussian_filter(truth[0].numpy(), 0.5))[None]
    both = torch.cat((answer, mean))

    def one(family: Family, volumes: Tensor) -> tuple[float, float]:
        return timed(lambda: family.score(ScoredCase.of(record, truth, dataset.window), volumes))

    best: dict[str, list[float]] = {}
    of_a_case, of_a_set, unavailable = families(protocol)
    for repeat in range(repeats):
        if repeat:  # what a family keeps from case to case is not yet there
            of_a_case, of_a_set, unavailable = families(protocol)
        for family in random.sample(of_a_case, len(of_a_case)):
            now = [*one(family, answer), *one(family, both), *one(family, both)]
            best[family.name] = [min(pair) for pair in zip(now, best.get(family.name, now), strict=True)]
    best = {family.name: best[family.name] for family in of_a_case}
    best["sum of the families of a case"] = [sum(column) for column in zip(*best.values(), strict=True)]
    for family in of_a_set:
        case = ScoredCase.of(record, truth, dataset.window)
        first, later = (timed(lambda f=family, c=case: f.add(c, answer, mean)) for _ in range(2))
        best[family.name] = [*later, *first, *later]  # these see the floor once
    rows = [{"family": name} | dict(zip(COLUMNS, values, strict=True)) for name, values in best.items()]
    rows += [{"family": f"{name}: unavailable"} | dict.fromkeys(COLUMNS) for name in unavailable]
    return rows


COLUMNS = tuple(
    f"{what}{clock}_s" for what in ("", "first_with_floor_", "later_with_floor_") for clock in ("wall", "processor")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="voxels per side, of 2 mm")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--protocol", default="paper")
    parser.add_argument("--out", type=Path, default=HERE / "metric_set_cpu.csv")
    args = parser.parse_args()
    random.seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        dataset = instrumented(Path(folder) / "phantoms", args.size)
        for threads in args.threads:
            torch.set_num_threads(threads)
            for row in measure(dataset, args.protocol, args.repeats):
                cells = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()}
                rows.append({"threads": threads} | cells)
                print("  ".join(f"{value!s:>12}" for value in rows[-1].values()), flush=True)
    setup = {"volume": f"phantom {args.size}^3", "protocol": args.protocol, "repeats": args.repeats}
    setup |= {"cpu": cpu_model(), "torch": torch.__version__}
    write_csv(args.out, [row | setup for row in rows])


if __name__ == "__main__":
    main()
