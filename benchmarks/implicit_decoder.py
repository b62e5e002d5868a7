"""Eq. 6 two ways: broadcast and linear-first (ImplicitDecoder) against grid_sample and MLP per voxel.

    python benchmarks/implicit_decoder.py            # writes benchmarks/implicit_decoder_cpu.csv

Forward and backward, fp32, batch 1. Every measurement is a fresh process: seconds are the best of the repeats
(a busy machine only ever adds time), memory is what the process's peak resident set rose by.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from _common import HERE, machine, write_csv
from _eq6 import decode_by_grid_sample
from diffux2ct.models.implicit_decoder import ImplicitDecoder

METHODS = ("broadcast", "grid_sample")


def measure(method: str, size: int, channels: int, out_channels: int, repeats: int, threads: int) -> dict:
    """One method at one size, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def step(n: int) -> float:
        decoder = ImplicitDecoder(channels, channels, out_channels)
        planes = [torch.randn(1, channels, n, n, requires_grad=True) for _ in range(3)]
        start = time.perf_counter()
        h = decoder(*planes) if method == "broadcast" else decode_by_grid_sample(decoder, *planes)
        h.backward(torch.ones_like(h))
        return time.perf_counter() - start

    step(8)  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min(step(size) for _ in range(repeats))
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "peak_mib": rise / 1024}


def measure_in_fresh_process(method: str, size: int, args: argparse.Namespace) -> dict:
    numbers = (size, args.channels, args.out_channels, args.repeats, args.threads)
    command = [sys.executable, __file__, "--worker", method, *map(str, numbers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="voxels per side")
    parser.add_argument("--channels", type=int, default=64, help="of the planes, and hidden")
    parser.add_argument("--out-channels", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "implicit_decoder_cpu.csv")
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        fast, oracle = (measure_in_fresh_process(method, size, args) for method in METHODS)
        row = {"size": size, "channels": args.channels, "out_channels": args.out_channels, "threads": args.threads}
        for name, result in zip(METHODS, (fast, oracle), strict=True):
            row |= {f"{name}_seconds": round(result["seconds"], 4), f"{name}_peak_mib": round(result["peak_mib"], 1)}
        row["time_ratio"] = round(oracle["seconds"] / fast["seconds"], 2)
        # A small size fits in what the libraries hold already: no rise, and no ratio.
        row["memory_ratio"] = round(oracle["peak_mib"] / fast["peak_mib"], 2) if fast["peak_mib"] else ""
        rows.append(row | {"torch": torch.__version__, "machine": machine()})
        print(rows[-1])
    write_csv(args.out, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        method, *numbers = sys.argv[2:]
        print(json.dumps(measure(method, *map(int, numbers))))
    else:
        main()
