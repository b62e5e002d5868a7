"""Cost of a training step as the work grows: 32, 64, 96 and 128^3, batch 1, 2 and 4, beside the ideal line.

    python benchmarks/scaling.py                                # counts the paper's model; nothing is allocated
    python benchmarks/scaling.py --time 32:1 32:2 32:4 64:1     # and times these sizes and batches on this CPU
    python benchmarks/scaling.py --widths small --out small.csv --picture small.png

Counted (of bf16 autocast, channels_last_3d, Adam and EMA, see ``_step_memory.py``): TFLOP of forward and backward, GiB
kept between the two, and the step's peak, with and without checkpointing. A GPU's attention kernels keep less than is
counted here. Timed: the median of whole steps, wall and processor seconds (the latter, which a
busy machine spoils less, are drawn); other sizes stay empty in the table.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module

from _common import HERE, ROOT, cpu_model, write_csv
from _step_memory import count_step
from diffux2ct import build
from diffux2ct.training.state import prepare_model

SIZES, BATCHES = (32, 64, 96, 128), (1, 2, 4)


def make_model(widths: str, size: int, checkpoint_stages: list[int]):
    """DiffuX2CT of given widths, in training mode."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        overrides = [f"size={widths}", f"dataset.size={size}", f"trainer.checkpoint_stages={checkpoint_stages}"]
        cfg = compose("train", ["experiment=demo", "model=diffux2ct", *overrides])
    return build.build_reconstructor(cfg).train()


def time_step(widths: str, size: int, batch: int, repeats: int) -> tuple[float, float]:
    """Wall and processor seconds of a step on this CPU."""
    model = prepare_model(make_model(widths, size, []), torch.device("cpu"), channels_last=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    views = {view: torch.rand(batch, 1, size, size) for view in ("frontal", "lateral")}
    data = {"volume": torch.rand(batch, 1, size, size, size), **views, "seed": torch.arange(batch)}
    wall, cpu = [], []
    for _ in range(repeats + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            total = model("diffusion", data)["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return statistics.median(wall[1:]), statistics.median(cpu[1:])  # the first one sets things up


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for each size, batch and way of checkpointing (none, the finest stage, all stages)."""
    rows = []
    for size in args.sizes:
        for batch in args.batches:
            for stages in ([], [size], [size, size // 2, size // 4]) if batch == 1 else ([],):
                counts = count_step(make_model(args.widths, size, stages), size, batch)
                timed = f"{size}:{batch}" in args.time and not stages
                wall, cpu = time_step(args.widths, size, batch, args.repeats) if timed else ("", "")
                rows.append(
                    {
                        "widths": args.widths,
                        "size": size,
                        "batch": batch,
                        "checkpoint_stages": " ".join(map(str, stages)),
                        **{name: round(value, 4) for name, value in counts.items()},
                        "seconds": wall,
                        "cpu_seconds": cpu,
                        "threads": args.threads if timed else "",
                        "cpu": cpu_model() if timed else "",
                        "torch": torch.__version__,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Work, memory and, where timed, seconds over the number of voxels, each beside its ideal line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [("tflop", "TFLOP of a step"), ("peak_gib", "peak memory (GiB)")]
    panels += [("cpu_seconds", "processor seconds of a step")] if any(row["cpu_seconds"] != "" for row in rows) else []
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), constrained_layout=True)
    for axis, (key, label) in zip(axes, panels, strict=True):
        plain = [row for row in rows if not row["checkpoint_stages"] and row[key] != ""]
        for batch, colour in zip(BATCHES, ("C0", "C1", "C2"), strict=True):
            points = [(row["size"] ** 3 * batch, row[key]) for row in plain if row["batch"] == batch]
            axis.plot(*zip(*points, strict=True), "o", color=colour, label=f"batch {batch}") if points else None
        draw_ideal(axis, plain, key)
        if key == "peak_gib":
            draw_memory(axis, rows)
        axis.set(xscale="log", yscale="log", xlabel="voxels of a batch", ylabel=label)
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_ideal(axis, rows: list[dict], key: str) -> None:
    """In proportion to the voxels, from the smallest batch on; memory on top of the state, which does not grow."""
    voxels = sorted(row["size"] ** 3 * row["batch"] for row in rows)
    first = min(rows, key=lambda row: row["size"] ** 3 * row["batch"])
    fixed, growing = (first["state_gib"], first["kept_gib"]) if key == "peak_gib" else (0, first[key])
    ideal = [fixed + growing * n / voxels[0] for n in voxels]
    axis.plot(voxels, ideal, "k--", linewidth=1, label="in proportion to the voxels")


def draw_memory(axis, rows: list[dict]) -> None:
    """Checkpointed steps, and what common GPUs hold."""
    ways = {1: ("^", "finest stage checkpointed"), 3: ("v", "all stages checkpointed")}
    for number, (marker, label) in ways.items():
        found = [row for row in rows if len(row["checkpoint_stages"].split()) == number]
        points = [(row["size"] ** 3, row["peak_gib"]) for row in found]
        axis.plot(*zip(*points, strict=True), marker, color="C3", label=label)
    for gib in (24, 48, 80):
        axis.axhline(gib, color="grey", linewidth=0.7)
        axis.annotate(f"{gib} GiB", (32**3, gib), fontsize=7, color="grey", va="bottom")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", default="paper")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--time", nargs="*", default=[], metavar="SIZE:BATCH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE / "scaling.csv")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "performance_scaling.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args)
    write_csv(args.out, rows)
    draw(rows, args.picture)


if __name__ == "__main__":
    main()
