"""Phantoms as a prepared folder: generated on first use, resumed where they were interrupted."""

import errno
import hashlib
import json
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

from diffux2ct.atomic import write_text
from diffux2ct.data.phantom.anatomy import REGIONS
from diffux2ct.data.phantom.make import MIN_PAINTED_SIZE, make_phantom
from diffux2ct.data.prepared.workers import num_cores, run_in_workers
from diffux2ct.data.prepared.writer import finish_dataset, read_case, write_case
from diffux2ct.errors import UserError
from diffux2ct.intensity import HU_WINDOW

FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # so a longer training set keeps its test cases
VERSION = 2  # raise it when the same seed gives other voxels


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

    region: the part of the patients that is in view, see ``make_phantom``. workers: processes; None decides from
    cores and work. A finished folder of the same settings is left alone and an interrupted one is completed.
    Raises UserError where `root` holds anything else, on another region, and when the disk is full.
    Not for several processes on one root at once: under torchrun only rank 0 may call it.
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
    todo = _missing(root, split)
    job = partial(_write_phantom, root, size=size, extent_mm=float(extent_mm), seed=seed, camera=camera, region=region)
    try:
        progress = tqdm(total=len(todo), desc="phantoms", unit="case", disable=not todo)
        with progress:
            for _ in run_in_workers(job, todo, _choose_workers(len(todo), size, workers)):
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


def _missing(root: Path, split: dict[str, list[str]]) -> list[tuple[str, int]]:
    """The cases that are still to be made, each with the index that names its patient."""
    return [
        (case_id, FIRST_INDEX[part] + i)
        for part, ids in split.items()
        for i, case_id in enumerate(ids)
        if read_case(root, case_id) is None
    ]


def _claim(root: Path, settings: dict) -> bool:
    """Mark `root` as ours with these settings. True if finished already; UserError if it is something else."""
    mark = root / "phantom.json"
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "dataset.json").exists() or (root / "cases").exists():
            raise UserError(f"{root}: holds another data set; choose another dataset.root, or remove it") from None
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


def _choose_workers(num_cases: int, size: int, workers: int | None) -> int:
    """As many as cores, or one where starting others would take longer than the work."""
    if workers is None:
        seconds = num_cases * 0.5 * (max(size, MIN_PAINTED_SIZE) / 128) ** 2
        workers = num_cores() if seconds > 10 else 1  # another process takes some seconds to start
    return min(workers, num_cases)
