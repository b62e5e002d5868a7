"""3D augmentation (dataset.augment=true) beside a training step of posterior_flow, tiny, on one batch of phantoms.

    python benchmarks/augment_cpu.py            # writes benchmarks/augment_cpu.csv

Both in turn in one process and thread; seconds of the processor, the medians of the repeats, so that other work on the
machine does not count. A step is forward, backward and the model's own optimiser (cfg.optim) of the mean objective,
fp32; the flow's runs the mean's networks, too. share: augmentation over step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from torch.utils.data import default_collate

from _common import HERE, machine, write_csv
from diffux2ct import build
from diffux2ct.data.phantom import generate_dataset
from diffux2ct.data.prepared.augment import Augmentation
from diffux2ct.data.prepared.dataset import PreparedDataset


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measured(size: int, batch_size: int, repeats: int, folder: Path) -> tuple[float, float]:
    """Median seconds of augmentation and of a step."""
    generate_dataset(folder, num_train=batch_size, num_val=0, num_test=0, size=size, extent_mm=256.0, seed=0, workers=1)
    data = PreparedDataset(folder, augment=Augmentation())
    batch = default_collate([data[i] for i in range(batch_size)]) | {"seed": torch.arange(batch_size)}
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["experiment=plus", "size=tiny", "dataset=phantom", f"dataset.size={size}"])
    cfg = build.resolved(cfg)
    model = build.build_reconstructor(cfg).train()
    objective = model.objectives()[0]
    optimizer = build.build_optimizer(cfg)(list(objective.parameters))

    def step() -> None:
        optimizer.zero_grad()
        model(objective.name, batch)["total"].backward()
        optimizer.step()

    assert data.augment is not None
    augment = data.augment
    times = [(seconds(lambda: augment(batch)), seconds(step)) for _ in range(repeats + 1)][1:]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="voxels per side")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "augment_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            augment, step = measured(size, args.batch, args.repeats, Path(folder) / "phantoms")
        row = {"size": size, "batch": args.batch, "augment_seconds": f"{augment:.3f}"}
        row |= {"step_seconds": f"{step:.3f}", "share": f"{augment / step:.3f}"}
        rows.append(row | {"torch": torch.__version__, "machine": machine()})
        print(rows[-1])
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
