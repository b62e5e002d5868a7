"""Planes lifted along a cone's rays two ways: products with a matrix a depth (along_rays) against grid_sample.

    python benchmarks/lifting.py            # writes benchmarks/lifting_cpu.csv

Forward and backward, fp32, batch 1, camera lumbar, frontal view. Both ways in turn in one process; seconds are the best
of the repeats. planes: "one", the same at every depth (along), or "each", one a depth (depth).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from _common import HERE, machine, write_csv
from diffux2ct.models.plus.rays import along_rays
from diffux2ct.xray.camera import camera_preset

SIDE = 256.0  # mm


def by_grid_sample(planes: Tensor, grid: Tensor) -> Tensor:
    """[1, c, depths, v, u] and [d, z, across, 2] -> [1, c, z, d, across]: all depths in one call."""
    slabs = planes[0].transpose(0, 1).expand(len(grid), -1, -1, -1)
    return F.grid_sample(slabs, grid, align_corners=False).permute(1, 2, 0, 3)[None]


def pixels(size: int) -> Tensor:
    """Where each voxel appears, for ``grid_sample``: [d, z, across, 2]."""
    camera = camera_preset("lumbar", size, SIDE / size)
    centres = ((torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1) * SIDE / 2
    y, z, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    seen = camera.voxel_to_pixel(torch.stack((x, y, z), -1), "frontal")
    panel = torch.tensor([camera.cols, camera.rows])
    return ((seen.flip(-1) * 2 + 1) / panel - 1).float()


def seconds(lift: Callable[[Tensor], Tensor], planes: Tensor) -> float:
    planes = planes.clone().requires_grad_()
    start = time.perf_counter()
    volume = lift(planes)
    volume.backward(torch.ones_like(volume))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="voxels per side")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "lifting_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for size in args.sizes:
        camera = torch.tensor([camera_preset("lumbar", size, SIDE / size).panel_map(SIDE)])
        grid = pixels(size)
        for name, depths in (("one", 1), ("each", size)):
            planes = torch.randn(1, args.channels, depths, size, size, generator=torch.Generator().manual_seed(0))

            def ours(planes: Tensor, camera: Tensor = camera) -> Tensor:
                return along_rays(planes, camera, "frontal")

            def theirs(planes: Tensor, grid: Tensor = grid) -> Tensor:
                return by_grid_sample(planes, grid)

            torch.testing.assert_close(ours(planes), theirs(planes), rtol=0, atol=1e-3)
            times = [(seconds(ours, planes), seconds(theirs, planes)) for _ in range(args.repeats + 1)][1:]
            best, reference = (min(column) for column in zip(*times, strict=True))
            row = {"size": size, "planes": name, "channels": args.channels, "threads": args.threads}
            row |= {"along_rays_seconds": f"{best:.4f}", "grid_sample_seconds": f"{reference:.4f}"}
            rows.append(row | {"ratio": f"{reference / best:.2f}", "torch": torch.__version__, "machine": machine()})
            print(rows[-1])
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
