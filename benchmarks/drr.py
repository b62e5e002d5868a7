"""DRR speed on the CPU: our projectors, nanodrr, diffdrr and plastimatch, same volume, same cone camera, same run.

    pip install -c constraints.txt -e '.[peers]' plastimatch==1.10.0
    python benchmarks/drr.py                    # writes benchmarks/drr_cpu.csv

Without the packages that the peers' viewers want (kornia, pyvista, ...), and without pip touching torch:

    pip install --no-deps --target PEERS nanodrr==0.1.7 diffdrr==0.6.1 torchio roma fastcore nibabel \
        pandas python-dateutil six humanize deprecated wrapt plastimatch==1.10.0
    PYTHONPATH=PEERS python benchmarks/drr.py

One repetition renders frontal and lateral once with every renderer, in shuffled order; a figure is the median over
repetitions of the time for the pair. Renderers get what they can reuse (rays, matrices, volume in their layout)
before the clock starts; ours keeps nothing between calls. plastimatch is a program: its first row is the whole call,
with its start and the reading of the volume; the second is the time that it reports for projecting. The images are
compared too, as a share of our first projector's mean and of its largest value, so that nobody wins by drawing
something else. Let the machine be otherwise idle: with several threads, matrix products wait for their slowest thread
and suffer more than others from a neighbour.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from _common import HERE, cpu_model, skip, write_csv
from _drr_peers import Plastimatch, diffdrr, nanodrr, plastimatch_program
from diffux2ct import __version__
from diffux2ct.intensity import attenuation_from_hu
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import PROJECTORS

PLASTIMATCH_CALL = ("plastimatch", "exact (Siddon), whole call")
PLASTIMATCH_OWN = ("plastimatch", "exact (Siddon), projecting")


def ours(attenuation, spacing, camera, projector):
    volume = attenuation[None, None].clone()
    return volume, lambda view: PROJECTORS[projector](volume, spacing, camera, view)[0, 0]


def contenders(hu, spacing, camera, folder):
    """(package, setting) -> (its volume tensor or None, render(view))."""
    mu = attenuation_from_hu(hu)
    renderers = {
        ("diffux2ct", "joseph, 128 slabs"): ours(mu, spacing, camera, "joseph"),
        ("diffux2ct", "siddon"): ours(mu, spacing, camera, "siddon"),
        ("diffux2ct", "trilinear, half a voxel"): ours(mu, spacing, camera, "trilinear"),
        ("nanodrr", "500 samples a ray (its default)"): nanodrr(mu, spacing, camera, 500),
        ("nanodrr", "128 samples a ray"): nanodrr(mu, spacing, camera, 128),
        ("diffdrr", "siddon (its default)"): diffdrr(mu, spacing, camera, "siddon"),
        ("diffdrr", "trilinear, 500 samples a ray"): diffdrr(mu, spacing, camera, "trilinear"),
    }
    if plastimatch_program():
        program = Plastimatch(hu.numpy(), spacing, camera, folder)
        renderers[PLASTIMATCH_CALL] = (None, program)
    return renderers


def forward(volume, render) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {view: render(view) for view in VIEWS}


def forward_backward(volume, render) -> None:
    volume.requires_grad_(True)
    for view in VIEWS:
        torch.autograd.grad(render(view).sum(), volume)
    volume.requires_grad_(False)


def measure(step, renderers, repeats: int) -> dict:
    """Milliseconds per pair of views, one number a repetition and renderer."""
    renderers = {key: it for key, it in renderers.items() if it[0] is not None or step is forward}
    times = {key: [] for key in renderers}
    order = list(renderers)
    for repeat in range(repeats + 1):
        random.Random(repeat).shuffle(order)
        for key in order:
            start = time.perf_counter()
            step(*renderers[key])
            times[key].append((time.perf_counter() - start) * 1e3)
            if isinstance(renderers[key][1], Plastimatch):
                # Twice its last view's own report: that of a pair.
                times.setdefault(PLASTIMATCH_OWN, []).append(2e3 * renderers[key][1].seconds)
    return {key: values[1:] for key, values in times.items()}  # the first warms up


def differences(images, reference) -> tuple[float, float]:
    """Mean difference over our mean, and largest difference over our maximum; both views together."""
    a, b = (torch.stack([pair[view] for view in VIEWS]) for pair in (images, reference))
    gap = (a - b).abs()
    return float(gap.mean() / b.mean()), float(gap.max() / b.max())


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return __version__


def table(renderers: dict, images: dict, threads: list[int], repeats: int) -> list[dict]:
    """A row per pass, thread count and renderer; printed as it comes."""
    us = next(iter(renderers))
    gaps = {key: differences(pair, images[us]) for key, pair in images.items()}
    gaps[PLASTIMATCH_OWN] = gaps.get(PLASTIMATCH_CALL, (0.0, 0.0))
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        for name, step in (("forward", forward), ("forward+backward", forward_backward)):
            times = measure(step, renderers, repeats)
            base = statistics.median(times[us])
            for (package, setting), values in times.items():
                median, (mean_gap, max_gap) = statistics.median(values), gaps[package, setting]
                rows.append(
                    {
                        "pass": name,
                        "threads": count,
                        "renderer": package,
                        "version": package_version(package),
                        "setting": setting,
                        "median_ms": f"{median:.2f}",
                        "min_ms": f"{min(values):.2f}",
                        "times_ours": f"{median / base:.1f}",
                        "mean_difference": f"{mean_gap:.2e}",
                        "max_difference": f"{max_gap:.2e}",
                    }
                )
                print(
                    f"{name:17s}{count:2d} threads  {package:10s}{setting:33s}{median:9.1f} ms "
                    f"{median / base:6.1f} x  mean difference {mean_gap:.1e}"
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--size", type=int, default=128, help="voxels per side of the cube of 256 mm")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--out", type=Path, default=HERE / "drr_cpu.csv")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    from diffux2ct.data.phantom import make_phantom

    size, spacing = args.size, 256.0 / args.size
    hu = torch.from_numpy(make_phantom(0, 0, size=size, extent_mm=size * spacing).hu)
    camera = camera_preset("lumbar", size, spacing)
    folder = tempfile.TemporaryDirectory()
    try:
        renderers = contenders(hu, spacing, camera, Path(folder.name))
    except ImportError as error:
        skip(f"{error}; install the peers: pip install -c constraints.txt -e '.[peers]' (or see --help)")

    images = {key: forward(*renderer) for key, renderer in renderers.items()}
    setup = {
        "volume": f"{size}^3 at {spacing:g} mm",
        "views": f"frontal+lateral {camera.rows}x{camera.cols}",
        "camera": f"{camera.name} {camera.sad:g}/{camera.sid:g} mm",
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "repeats": args.repeats,
    }
    rows = [row | setup for row in table(renderers, images, args.threads, args.repeats)]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
