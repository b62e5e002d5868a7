"""Phantoms per second, on one core and on two, by region and size.

    python benchmarks/phantom.py               # writes benchmarks/phantom.csv

Processes of one thread each paint phantoms for a fixed time, after one to warm up. Rates are by the wall clock, so they
count what else the machine does; cpu_seconds is what one phantom takes of a core.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from _common import HERE, machine, write_csv
from diffux2ct.data.phantom import REGIONS, make_phantom


def paint(region: str, size: int, seconds: float, first: int) -> tuple[int, float, float]:
    """Paint for some seconds: how many phantoms, and the seconds by the wall clock and of the processor."""
    make_phantom(0, first, size, region=region)
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        count += 1
        make_phantom(0, first + count, size, region=region)
    return count, time.perf_counter() - wall, time.process_time() - cpu


def measure(pool: ProcessPoolExecutor, region: str, size: int, processes: int, seconds: float) -> dict:
    """One row: all processes at once."""
    jobs = [pool.submit(paint, region, size, seconds, 1000 * i) for i in range(processes)]
    results = [job.result() for job in jobs]
    phantoms = sum(count for count, _, _ in results)
    return {
        "region": region,
        "size": size,
        "processes": processes,
        "volumes_per_second": f"{sum(count / wall for count, wall, _ in results):.2f}",
        "cpu_seconds": f"{sum(cpu for _, _, cpu in results) / phantoms:.3f}",
        "load_average": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=HERE / "phantom.csv")
    args = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(max(args.processes), mp_context=get_context("spawn")) as pool:
        for size in args.sizes:
            for region in REGIONS:
                for processes in args.processes:
                    row = measure(pool, region, size, processes, args.seconds)
                    rows.append(row | {"numpy": np.__version__, "machine": machine()})
                    print(
                        f"{size:4d} {region:8s}{processes:3d} processes {row['volumes_per_second']:>7s} volumes/s "
                        f"{row['cpu_seconds']} s of a core each"
                    )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
