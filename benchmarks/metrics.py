"""Distortion metrics on the CPU: ours against scikit-image's, slice by slice, on one pair of volumes in one run.

    python benchmarks/metrics.py                    # writes benchmarks/metrics_cpu.csv

The loop is what one writes with scikit-image: peak_signal_noise_ratio and structural_similarity (7x7) of every slice
across the three axes, and structural_similarity of the whole volume (7x7x7). scikit-image uses one thread whatever
torch is given. One repetition measures everything once, in shuffled order; the fastest of the repetitions counts. Two
ratios, skimage's time to ours: of wall time, which means something on an otherwise idle machine only, and of the time
of all threads on the processor, which a busy neighbour hardly changes. Differences are between the two results. The
last rows have no counterpart in scikit-image.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_ssim

from _common import HERE, cpu_model, write_csv
from diffux2ct.data.phantom import make_phantom
from diffux2ct.evaluation.fidelity.distortion import decibel, slice_errors
from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS, score
from diffux2ct.evaluation.fidelity.ssim import ms_ssim3d, structural_similarity
from diffux2ct.intensity import HU_WINDOW, normalize_hu

Values = list[float]


def pair(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and a noisy, blurred prediction in [0, 1], double precision, [1, D, H, W]."""
    hu = make_phantom(0, 0, size=size, extent_mm=2.0 * size).hu
    truth = torch.from_numpy((normalize_hu(hu).astype(np.float64) + 1) / 2)[None]
    smooth = torch.nn.functional.avg_pool3d(truth, 3, stride=1, padding=1)
    noise = 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=truth.dtype)
    return (smooth + noise).clamp(0, 1), truth


def of_slices(metric: Callable[..., Any], a: np.ndarray, b: np.ndarray) -> Values:
    """The mean over each axis's slices, one call a slice."""
    planes = [zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), strict=True) for axis in range(3)]
    return [float(np.mean([metric(y, x, data_range=1.0) for x, y in axis])) for axis in planes]


def contenders(prediction: torch.Tensor, truth: torch.Tensor) -> dict[str, dict[str, Callable[[], Values]]]:
    """{what: {package: measure}}; the order of the values is the same for both packages."""
    a, b = prediction[0].numpy(), truth[0].numpy()

    def our_psnr() -> Values:
        return [float(decibel(error).mean()) for error in slice_errors(prediction, truth)]

    def our_ssim(volume: bool) -> Values:
        result = structural_similarity(prediction, truth, volume=volume)
        return [float(value.mean()) for value in result if value is not None]

    def their_psnr() -> Values:
        return of_slices(peak_signal_noise_ratio, a, b)

    def their_ssim() -> Values:
        return of_slices(skimage_ssim, a, b)

    def their_ssim3d() -> Values:
        return [float(skimage_ssim(b, a, data_range=1.0))]

    normal = [2 * volume.float() - 1 for volume in (prediction, truth)]
    return {
        "PSNR of slices": {"skimage": their_psnr, "diffux2ct": our_psnr},
        "SSIM of slices": {"skimage": their_ssim, "diffux2ct": lambda: our_ssim(False)},
        "PSNR and SSIM of slices": {
            "skimage": lambda: their_psnr() + their_ssim(),
            "diffux2ct": lambda: our_psnr() + our_ssim(False),
        },
        "PSNR and SSIM of slices, SSIM3D": {
            "skimage": lambda: their_psnr() + their_ssim() + their_ssim3d(),
            "diffux2ct": lambda: our_psnr() + our_ssim(True),
        },
        "MS-SSIM3D": {"diffux2ct": lambda: ms_ssim3d(prediction, truth).tolist()},
        **{
            f"all 14 metrics, protocol {name}": {
                "diffux2ct": lambda p=protocol: [
                    value for row in score(*normal, HU_WINDOW, p) for value in row.values() if value is not None
                ]
            }
            for name, protocol in PROTOCOLS.items()
        },
    }


def measured(function: Callable[[], Values]) -> tuple[float, float, Values]:
    """Wall seconds, processor seconds, result."""
    wall, processor = time.perf_counter(), time.process_time()
    values = function()
    return time.perf_counter() - wall, time.process_time() - processor, values


def table(what: dict[str, dict[str, Callable[[], Values]]], threads: int, repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    calls = [(name, package, call) for name, packages in what.items() for package, call in packages.items()]
    best: dict[tuple[str, str], list[float]] = {}
    values: dict[tuple[str, str], Values] = {}
    for _ in range(repeats):
        for name, package, call in random.sample(calls, len(calls)):
            wall, processor, values[name, package] = measured(call)
            former = best.get((name, package), [wall, processor])
            best[name, package] = [min(former[0], wall), min(former[1], processor)]
    rows = []
    for name, package, _ in calls:
        wall, processor = best[name, package]
        peers = "skimage" in what[name]
        ratios = (
            [theirs / ours for theirs, ours in zip(best[name, "skimage"], best[name, package], strict=True)]
            if peers
            else []
        )
        gap = np.abs(np.subtract(values[name, package], values[name, "skimage"])).max() if peers else None
        rows.append(
            {"threads": threads, "metrics": name, "package": package}
            | {"wall_ms": f"{1e3 * wall:.1f}", "processor_ms": f"{1e3 * processor:.1f}"}
            | {"wall_ratio": f"{ratios[0]:.1f}" if peers else ""}
            | {"processor_ratio": f"{ratios[1]:.1f}" if peers else ""}
            | {"largest_difference": "" if gap is None else f"{gap:.1e}"}
        )
        print("  ".join(f"{value!s:>10}" for value in rows[-1].values()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="voxels per side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "metrics_cpu.csv")
    args = parser.parse_args()
    random.seed(0)
    what = contenders(*pair(args.size))
    setup = {
        "volume": f"phantom {args.size}^3",
        "repeats": args.repeats,
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "skimage": skimage.__version__,
    }
    rows = [row | setup for threads in args.threads for row in table(what, threads, args.repeats)]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
