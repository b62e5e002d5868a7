"""A procedural lumbar torso CT with labels: the data set that ships inside the package.

Made to have what two X-rays must tell apart, not to be anatomically exact: a lordotic (often scoliotic) spine
with posterior elements, ribs, sacrum and hips, muscles, organs that differ between left and right, gas, and in
about half of the patients pedicle screws and rods. Nothing in it comes from a real patient.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8
from tqdm import tqdm

from diffux2ct.data.case_writer import finish_dataset, read_case, write_case, write_text
from diffux2ct.data.phantom_anatomy import draw_anatomy
from diffux2ct.data.phantom_bones import (
    LABELS,
    paint_hip,
    paint_implants,
    paint_ribs,
    paint_sacrum,
    paint_vertebra,
)
from diffux2ct.data.phantom_canvas import Canvas, lattice_noise
from diffux2ct.data.phantom_soft import (
    Trunk,
    paint_bowel,
    paint_couch,
    paint_lungs,
    paint_muscles,
    paint_organs,
    paint_trunk,
)
from diffux2ct.errors import UserError
from diffux2ct.geometry.hounsfield import HU_WINDOW

__all__ = ["LABELS", "Phantom", "generate_dataset", "make_phantom"]

MIN_PAINTED_SIZE = 64  # smaller volumes are painted at least this fine and block-averaged
FIRST_INDEX = {
    "train": 0,
    "val": 1_000_000,
    "test": 2_000_000,
}  # so a longer training set keeps its test cases
VERSION = 1  # raise it when the same seed gives other voxels


@dataclass(frozen=True)
class Phantom:
    """One phantom: HU and labels [D, H, W] in LPS, spacing and origin (x, y, z) in mm."""

    hu: Int16[np.ndarray, "d h w"]
    labels: UInt8[np.ndarray, "d h w"]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    meta: dict


def _block_mean(volume: np.ndarray, factor: int) -> np.ndarray:
    n = volume.shape[0] // factor
    return volume.reshape(n, factor, n, factor, n, factor).mean((1, 3, 5))


def _block_labels(labels: np.ndarray, factor: int) -> np.ndarray:
    """The most frequent label of each block in which at least half of the voxels carry one."""
    n = labels.shape[0] // factor
    blocks = labels.reshape(n, factor, n, factor, n, factor).transpose(0, 2, 4, 1, 3, 5).reshape(n, n, n, -1)
    best, most = np.zeros((n, n, n), np.uint8), np.zeros((n, n, n), np.intp)
    for value in np.unique(labels)[1:]:
        count = (blocks == value).sum(-1)
        best[count > most] = value
        most = np.maximum(most, count)
    best[(blocks > 0).mean(-1) < 0.5] = 0
    return best


def _paint(canvas: Canvas, seeds: np.random.SeedSequence) -> dict:
    """Paint one patient, outside in. Streams of their own keep the anatomy independent of the size."""
    body, shape, fine, bowel, noise = (np.random.default_rng(s) for s in seeds.spawn(5))
    anatomy = draw_anatomy(body)
    warp = 3.5 * lattice_noise(shape, canvas, 32.0)
    texture = lattice_noise(fine, canvas, 9.0)
    trunk = Trunk(canvas, anatomy)
    paint_trunk(canvas, anatomy, trunk, texture)
    paint_organs(canvas, anatomy, trunk, warp, texture)
    paint_bowel(canvas, anatomy, trunk, bowel, texture)
    paint_lungs(canvas, anatomy, trunk, warp, texture)
    paint_muscles(canvas, anatomy, trunk, warp, texture)
    for side in (-1, 1):
        paint_hip(canvas, anatomy, side, texture)
    paint_sacrum(canvas, anatomy, texture)
    paint_ribs(canvas, anatomy)
    for vertebra in anatomy.spine.values():
        paint_vertebra(canvas, anatomy, vertebra, texture)
    screws = paint_implants(canvas, anatomy)
    if anatomy.couch:
        paint_couch(canvas, anatomy, trunk)
    # White noise of a 2 mm voxel; a larger voxel averages more of it.
    sigma = anatomy["noise"] * (2.0 / canvas.voxel) ** 1.5
    canvas.hu += min(sigma, 3 * anatomy["noise"]) * noise.standard_normal(canvas.hu.shape, dtype=np.float32)
    return {
        "num_screws": screws,
        "implant_levels": list(anatomy.implant_levels),
        "scoliosis_deg": anatomy.scoliosis,
        "contrast": anatomy.contrast,
        "anatomy": {name: round(value, 4) for name, value in anatomy.values.items()},
    }


def make_phantom(seed: int, index: int, size: int = 128, extent_mm: float | int = 256.0) -> Phantom:
    """One patient, a function of (seed, index) only.

    seed, index: name the patient. size: voxels per side. extent_mm: side of the cube; L3 is near its centre,
    and 256 mm reach from T12 to the sacrum. Sizes below 64 are painted finer and block-averaged, so the same
    patient at 32 looks like the block average of itself at 128. Raises UserError on a size that is not positive.
    """
    if size < 1 or extent_mm <= 0:
        raise UserError(
            f"phantom: size={size} and extent_mm={extent_mm} must be positive; correct the dataset's settings"
        )
    factor = max(1, -(-MIN_PAINTED_SIZE // size))
    canvas = Canvas(size * factor, extent_mm)
    meta = _paint(canvas, np.random.SeedSequence([seed, index]))
    hu, labels = canvas.hu, canvas.labels
    if factor > 1:
        hu, labels = _block_mean(hu, factor), _block_labels(labels, factor)
    voxel = float(extent_mm / size)
    start = float(voxel / 2 - extent_mm / 2)
    return Phantom(
        hu=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        labels=labels,
        spacing=(voxel, voxel, voxel),
        origin=(start, start, start),
        meta={"seed": seed, "index": index, **meta},
    )


def generate_dataset(
    root: str | Path,
    num_train: int,
    num_val: int,
    num_test: int,
    size: int,
    extent_mm: float | int,
    seed: int,
    camera: str = "lumbar",
    workers: int | None = None,
) -> Path:
    """Write a prepared folder of phantoms, every case its own patient, and return it.

    A finished folder of the same settings is left alone and an interrupted one is completed; UserError where
    `root` holds anything else, or when the disk is full. workers: processes; None decides from cores and work.
    Not for several processes on one root at once: under torchrun only rank 0 may call it.
    """
    root = Path(root)
    settings = {
        "generator": "phantom", "version": VERSION, "size": size, "extent_mm": float(extent_mm), "seed": seed,
        "num_train": num_train, "num_val": num_val, "num_test": num_test, "preset": camera,
    }  # fmt: skip
    if _claim(root, settings):
        return root
    counts = {"train": num_train, "val": num_val, "test": num_test}
    split = {part: [f"phantom_{part}_{i:05d}" for i in range(n)] for part, n in counts.items()}
    todo = [
        (case_id, FIRST_INDEX[part] + i)
        for part, ids in split.items()
        for i, case_id in enumerate(ids)
        if read_case(root, case_id) is None
    ]
    job = partial(_write_phantom, root, size=size, extent_mm=float(extent_mm), seed=seed, camera=camera)
    try:
        for _ in tqdm(
            _run(job, todo, size, workers), total=len(todo), desc="phantoms", unit="case", disable=not todo
        ):
            pass
        spacing = [float(extent_mm / size)] * 3
        finish_dataset(root, "phantom", split, {**settings, "spacing": spacing, "window": list(HU_WINDOW)})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{root}: the disk is full; free space and start again, finished phantoms are kept"
        ) from error
    except BrokenProcessPool as error:
        raise UserError(
            f"{root}: a worker was killed (out of memory?); start again with fewer workers"
        ) from error
    return root


def _claim(root: Path, settings: dict) -> bool:
    """Mark `root` as ours with these settings. True if finished already; UserError if it is something else."""
    mark = root / "phantom.json"
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "dataset.json").exists() or (root / "cases").exists():
            raise UserError(
                f"{root}: holds another data set; choose another dataset.root, or remove it"
            ) from None
        write_text(mark, json.dumps(settings, indent=1) + "\n")
        return False
    except ValueError:
        found = {}
    if found != settings:
        other = ", ".join(f"{k}={found.get(k)}" for k in settings if found.get(k) != settings[k])
        raise UserError(
            f"{root}: holds phantoms of other settings ({other}); remove it, or choose another dataset.root"
        )
    return (root / "dataset.json").exists()


def _write_phantom(
    root: Path, case: tuple[str, int], *, size: int, extent_mm: float, seed: int, camera: str
) -> None:
    case_id, index = case
    phantom = make_phantom(seed, index, size, extent_mm)
    meta = {
        "patient": case_id,
        "source": f"phantom v{VERSION} seed={seed} index={index}",
        "sha256": hashlib.sha256(phantom.hu.tobytes()).hexdigest(),
        "phantom": phantom.meta,
    }
    write_case(
        root, case_id, phantom.hu, phantom.spacing, phantom.origin, camera, labels=phantom.labels, meta=meta
    )


def _run(job: partial, cases: list[tuple[str, int]], size: int, workers: int | None) -> Iterator[None]:
    """Do every case, in this process where starting others would take longer than the work."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        seconds = len(cases) * 2.0 * (max(size, MIN_PAINTED_SIZE) / 128) ** 3
        workers = cores if seconds > 15 else 1
    workers = min(workers, len(cases))
    if workers <= 1:
        for case in cases:
            yield job(case)
        return
    # spawn: a forked child of a process that has used torch's threads can hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread)
    try:
        for future in as_completed([pool.submit(job, case) for case in cases]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _use_one_thread() -> None:
    """The processes already fill the cores."""
    import torch

    torch.set_num_threads(1)
