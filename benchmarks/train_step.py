"""One training step, fp32 contiguous against bf16 channels_last_3d, alternating in one run.

    python benchmarks/train_step.py            # writes benchmarks/train_step_cpu.csv

Forward, backward and Adam of DiffuX2CT (``size=tiny`` and ``small``) at the given sizes. Seconds are medians.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module

from _common import HERE, machine, write_csv
from diffux2ct import build
from diffux2ct.training.state import prepare_model

WAYS = {"fp32-contiguous": (False, False), "bf16-channels_last_3d": (True, True)}


def make_step(widths: str, size: int, batch: int, bf16: bool, channels_last: bool):
    """A function that takes one step."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["experiment=demo", "model=diffux2ct", f"size={widths}", f"dataset.size={size}"])
    torch.manual_seed(0)
    reconstructor = prepare_model(build.build_reconstructor(cfg), torch.device("cpu"), channels_last).train()
    optimizer = torch.optim.Adam(reconstructor.parameters(), 1e-4)
    views = {view: torch.rand(batch, 1, size, size) for view in ("frontal", "lateral")}
    data = {"volume": torch.rand(batch, 1, size, size, size), **views, "seed": torch.arange(batch)}

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = reconstructor("diffusion", data)["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["tiny:32:8", "small:32:4", "small:64:1"], help="widths:size:batch"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE / "train_step_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for case in args.cases:
        widths, size, batch = case.split(":")
        steps = {name: make_step(widths, int(size), int(batch), *way) for name, way in WAYS.items()}
        for step in steps.values():
            step()  # what the first call sets up is not timed
        times = {name: [] for name in steps}
        for _ in range(args.repeats):
            for name, step in steps.items():
                times[name].append(step())
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "widths": widths,
                "size": size,
                "batch": batch,
                **{f"{name}_seconds": f"{value:.4f}" for name, value in medians.items()},
                "speedup": f"{medians['fp32-contiguous'] / medians['bf16-channels_last_3d']:.2f}",
                "threads": args.threads,
                "torch": torch.__version__,
                "machine": machine(),
            }
        )
        print(rows[-1], flush=True)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
