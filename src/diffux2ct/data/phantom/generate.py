"""Phantoms as a prepared folder: generated on first use, resumed where they were interrupted."""

import errno
import hashlib
import json
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

from diffux2ct.data.phantom.anatomy import REGIONS
from diffux2ct.data.phantom.make import MIN_PAINTED_SIZE, make_phantom
from diffux2ct.data.prepared.workers import num_cores, run_in_workers
from diffux2ct.data.prepared.writer import finish_dataset, read_case, write_case
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import write_text
from diffux2ct.intensity import HU_WINDOW

FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # so a longer training set keeps its test cases
VERSION = 2  # raise it when the voxels of a seed change


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
    region: str = "lumbar",
) -> Path:
    """Write a prepared folder of phantoms, every case its own patient, and return it.

    region: see ``make_phantom``. workers: processes; None decides from cores and work. A finished folder of the same
    settings is left alone and an interrupted one is completed. UserError where `root` holds anything else, on another
    region, and when the disk is full. Only one process at a time may call it on a root: under torchrun, rank 0.
    """
    root = Path(root)
    if region not in REGIONS:
        raise UserError(
            f"dataset.generate.region={region}: there is no such region; choose one of {', '.join(REGIONS)}"
        )
    settings = {
        "generator": "phantom", "version": VERSION, "region": region, "size": size,
        "extent_mm": float(extent_mm), "seed": seed,
        "num_train": num_train, "num_val": num_val, "num_test": num_test, "preset": camera,
    }  # fmt: skip
    if _claim(root, settings):
        return root
    counts = {"train": num_train, "val": num_val, "test": num_test}
    split = {part: [f"phantom_{part}_{i:05d}" for i in range(n)] for part, n in counts.items()}
    missing = [
        (case_id, FIRST_INDEX[part] + i)
        for part, ids in split.items()
        for i, case_id in enumerate(ids)
        if read_case(root, case_id) is None
    ]
    if workers is None:  # one where starting others, some seconds each, takes longer than the work
        seconds = len(missing) * 0.5 * (max(size, MIN_PAINTED_SIZE) / 128) ** 2
        workers = num_cores() if seconds > 10 else 1
    job = partial(_write_phantom, root, size=size, extent_mm=float(extent_mm), seed=seed, camera=camera, region=region)
    try:
        with tqdm(total=len(missing), desc="phantoms", unit="case", disable=not missing) as progress:
            for _ in run_in_workers(job, missing, min(workers, len(missing))):
                progress.update()
        spacing = [float(extent_mm / size)] * 3
        name = "phantom" if region == "lumbar" else f"phantom_{region}"
        finish_dataset(root, name, split, {**settings, "spacing": spacing, "window": list(HU_WINDOW)})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{root}: the disk is full; free space and start again, finished phantoms are kept") from error
    except BrokenProcessPool as error:
        raise UserError(f"{root}: a worker was killed (out of memory?); start again with fewer workers") from error
    return root


def _claim(root: Path, settings: dict) -> bool:
    """Mark `root` as ours with these settings. True if finished already; UserError if it is something else."""
    mark = root / "phantom.json"
    try:
        stored = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "dataset.json").exists() or (root / "cases").exists():
            raise UserError(f"{root}: holds another data set; choose another dataset.root, or remove it") from None
        write_text(mark, json.dumps(settings, indent=1) + "\n")
        return False
    except ValueError:
        stored = {}
    if stored != settings:
        other = ", ".join(f"{k}={stored.get(k)}" for k in settings if stored.get(k) != settings[k])
        raise UserError(
            f"{root}: holds phantoms of other settings ({other}); remove it, or choose another dataset.root"
        )
    return (root / "dataset.json").exists()


def _write_phantom(
    root: Path, case: tuple[str, int], *, size: int, extent_mm: float, seed: int, camera: str, region: str
) -> None:
    case_id, index = case
    phantom = make_phantom(seed, index, size, extent_mm, region)
    meta = {
        "patient": case_id,
        "source": f"phantom v{VERSION} {region} seed={seed} index={index}",
        "sha256": hashlib.sha256(phantom.hu.tobytes()).hexdigest(),
        "phantom": phantom.meta,
    }
    write_case(root, case_id, phantom.hu, phantom.spacing, phantom.origin, camera, labels=phantom.labels, meta=meta)
