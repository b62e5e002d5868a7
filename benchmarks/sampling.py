"""Seconds a volume, of posterior_flow and of DiffuX2CT, in one run.

    python benchmarks/sampling.py            # writes benchmarks/sampling_cpu.csv

Untrained weights, batch 1, no gradients. Each network is timed by itself, in turn (medians; at 128^3 once). A mean runs
two of posterior_flow's networks once, a sample all of them once and its flow once more for each further step; DiffuX2CT
runs its conditioning once and its denoiser once a step. The seconds of a volume are sums of these: 1000 steps are
counted, not run.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module

from _common import HERE, cpu_model, write_csv
from diffux2ct import build
from diffux2ct.training.state import prepare_model
from diffux2ct.xray.camera import camera_preset

NETWORKS = {
    "posterior_flow": ("mean_conditioning", "mean", "flow_conditioning", "flow"),
    "diffux2ct": ("conditioning", "denoiser"),
}


def model_of(name: str, widths: str, size: int) -> Any:
    """The untrained model, ready to reconstruct."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["experiment=demo", f"model={name}", f"size={widths}", f"dataset.size={size}"])
    torch.manual_seed(0)
    return prepare_model(build.build_reconstructor(cfg), torch.device("cpu"), True).eval()


@torch.no_grad()
def time_networks(widths: str, size: int, repeats: int) -> dict[str, float]:
    """Seconds of one run of each network at one size."""
    camera = torch.tensor([camera_preset("lumbar", size, 256 / size).panel_map(256.0)])
    batch = {view: torch.rand(1, 1, size, size) * 2 - 1 for view in ("frontal", "lateral")}
    batch |= {"volume": torch.rand(1, 1, size, size, size), "camera": camera}
    calls = {}
    for name, networks in NETWORKS.items():
        parts = model_of(name, widths, size).parts(batch)
        calls |= {network: parts[network][1] for network in networks}
    times: dict[str, list[float]] = {network: [] for network in calls}
    for _ in range(repeats):
        for network, call in calls.items():
            start = time.perf_counter()
            call()
            times[network].append(time.perf_counter() - start)
    # What a first call sets up is not timed, but where a second would take minutes.
    return {network: statistics.median(values[1:] or values) for network, values in times.items()}


def volumes(times: dict[str, float]) -> dict[str, float]:
    """Seconds of each kind of volume, from those of the networks."""
    mean = times["mean_conditioning"] + times["mean"]
    sample = {steps: mean + times["flow_conditioning"] + steps * times["flow"] for steps in (1, 2, 5, 10, 16)}
    ancestral = {steps: times["conditioning"] + steps * times["denoiser"] for steps in (10, 50, 1000)}
    return {
        "plus_mean": mean,
        **{f"plus_sample_{steps}": sample[steps] for steps in (1, 2, 5, 10)},
        "plus_ensemble_8x2": sample[16],
        **{f"diffux2ct_{steps}": ancestral[steps] for steps in ancestral},
        "factor_1000_to_sample_2": ancestral[1000] / sample[2],
        "factor_1000_to_sample_5": ancestral[1000] / sample[5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["tiny:32", "small:64", "paper:128"], help="widths:size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE / "sampling_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for case in args.cases:
        widths, size = case.split(":")
        timed = volumes(time_networks(widths, int(size), args.repeats if int(size) < 128 else 1))
        about = {"precision": "fp32", "threads": args.threads, "torch": torch.__version__, "cpu": cpu_model()}
        rows.append(
            {"widths": widths, "size": size, **{name: f"{value:.4g}" for name, value in timed.items()}, **about}
        )
        print(rows[-1], flush=True)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
