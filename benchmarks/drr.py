"""DRR speed on the CPU: this projector against nanodrr and diffdrr, same volume, same cone camera, same run.

    pip install "diffux2ct[peers]"
    python benchmarks/drr.py                    # writes benchmarks/drr_cpu.csv

Without the packages that the peers' viewers want (kornia, pyvista, ...), and without pip touching torch:

    pip install --no-deps --target PEERS nanodrr==0.1.7 diffdrr==0.6.1 torchio roma fastcore nibabel \
        pandas python-dateutil six humanize deprecated wrapt
    PYTHONPATH=PEERS python benchmarks/drr.py

One repetition renders frontal and lateral once with every renderer, in shuffled order; a figure is the median over
repetitions of the time for the pair. Renderers get what they can reuse (rays, matrices, volume in their layout)
before the clock starts; ours keeps nothing between calls. The images are compared too, as a share of our mean and
of our largest value, so that nobody wins by drawing something else. Let the machine be otherwise idle: with several
threads, matrix products wait for their slowest thread and suffer more than others from a neighbour.
"""

import argparse
import csv
import os
import platform
import random
import statistics
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from diffux2ct import __version__
from diffux2ct.geometry.camera import Camera, camera_preset
from diffux2ct.geometry.hounsfield import attenuation_from_hu
from diffux2ct.geometry.projector import project
from diffux2ct.types import VIEWS

# Camera axes in LPS: along the columns, along the rows, along the beam.
FRAMES = {
    "frontal": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    "lateral": ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
}


def pose(view: str, camera: Camera, rows_up: bool) -> torch.Tensor:
    """Camera to world [1, 4, 4]. A peer whose first row is the largest coordinate gets the row axis reversed."""
    column, row, beam = (torch.tensor(axis) for axis in FRAMES[view])
    matrix = torch.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = column, -row if rows_up else row, beam
    matrix[:3, 3] = -camera.sad * beam
    return matrix[None]


def torchio_image(attenuation: torch.Tensor, spacing: float):
    """A torchio image whose world is ours: LPS mm around the centre."""
    from torchio import ScalarImage

    data = attenuation.permute(2, 1, 0)[None].contiguous()  # torchio stores [C, W, H, D]
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = -(torch.tensor(data.shape[1:]) - 1) / 2 * spacing
    return ScalarImage(tensor=data, affine=affine.numpy())


def ours(attenuation, spacing, camera):
    volume = attenuation[None, None].clone()
    return volume, lambda view: project(volume, spacing, camera, view)[0, 0]


def nanodrr(attenuation, spacing, camera, n_samples):
    from nanodrr.data import Subject
    from nanodrr.drr import DRR

    subject = Subject.from_images(torchio_image(attenuation, spacing), convert_to_mu=False)
    drr = DRR.from_carm_intrinsics(
        camera.sid, camera.pitch[1], camera.pitch[0], 0.0, 0.0, camera.rows, camera.cols, dtype=torch.float32
    )
    poses = {view: pose(view, camera, rows_up=False) for view in VIEWS}
    return subject.image, lambda view: drr(subject, poses[view], n_samples=n_samples)[0, 0]


def diffdrr(attenuation, spacing, camera, renderer):
    from diffdrr.drr import DRR
    from diffdrr.pose import RigidTransform
    from torchio import Subject

    image = torchio_image(attenuation, spacing)
    subject = Subject(volume=image, density=image, mask=None, reorient=torch.eye(4), orientation=None)
    pitch = {"delx": camera.pitch[1], "dely": camera.pitch[0]}
    drr = DRR(
        subject, camera.sid, camera.rows, width=camera.cols, reverse_x_axis=False, renderer=renderer, **pitch
    )
    poses = {view: RigidTransform(pose(view, camera, rows_up=True)) for view in VIEWS}
    return drr.density, lambda view: drr(poses[view])[0, 0]


def contenders(attenuation, spacing, camera):
    """(package, setting) -> (its volume tensor, render(view))."""
    return {
        ("diffux2ct", "joseph, 128 slabs"): ours(attenuation, spacing, camera),
        ("nanodrr", "500 samples a ray (its default)"): nanodrr(attenuation, spacing, camera, 500),
        ("nanodrr", "128 samples a ray"): nanodrr(attenuation, spacing, camera, 128),
        ("diffdrr", "siddon (its default)"): diffdrr(attenuation, spacing, camera, "siddon"),
        ("diffdrr", "trilinear, 500 samples a ray"): diffdrr(attenuation, spacing, camera, "trilinear"),
    }


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
    times = {key: [] for key in renderers}
    order = list(renderers)
    for repeat in range(repeats + 1):
        random.Random(repeat).shuffle(order)
        for key in order:
            start = time.perf_counter()
            step(*renderers[key])
            times[key].append((time.perf_counter() - start) * 1e3)
    return {key: values[1:] for key, values in times.items()}  # the first warms up


def differences(images, reference) -> tuple[float, float]:
    """Mean difference over our mean, and largest difference over our maximum; both views together."""
    a, b = (torch.stack([pair[view] for view in VIEWS]) for pair in (images, reference))
    gap = (a - b).abs()
    return float(gap.mean() / b.mean()), float(gap.max() / b.max())


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return __version__


def table(renderers: dict, images: dict, threads: list[int], repeats: int) -> list[dict]:
    """A row per pass, thread count and renderer; printed as it comes."""
    us = next(iter(renderers))
    gaps = {key: differences(pair, images[us]) for key, pair in images.items()}
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("drr_cpu.csv"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    from diffux2ct.data.phantom import make_phantom

    size, spacing = 128, 2.0
    hu = torch.from_numpy(make_phantom(0, 0, size=size, extent_mm=size * spacing).hu)
    camera = camera_preset("lumbar", size, spacing)
    try:
        renderers = contenders(attenuation_from_hu(hu), spacing, camera)
    except ImportError as error:
        sys.exit(f"error: {error}; install the peers: pip install 'diffux2ct[peers]' (or see --help)")

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
    partial = args.out.with_name(f".{args.out.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, args.out)


if __name__ == "__main__":
    main()
