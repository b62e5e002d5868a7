"""Phantoms as a prepared folder: generated on first use, resumed where they were interrupted."""

import hashlib
import json
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffux2ct.arguments import check_choice
from diffux2ct.data.phantom.anatomy import REGIONS
from diffux2ct.data.phantom.make import MIN_PAINTED_SIZE, make_phantom
from diffux2ct.data.prepared.workers import num_cores, run_in_workers
from diffux2ct.data.prepared.writer import finish_dataset, read_case, write_case
from diffux2ct.errors import NO_ROOM, UserError
from diffux2ct.files.atomic import write_text
from diffux2ct.files.folder_lock import only_writer
from diffux2ct.intensity import HU_WINDOW

FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # so a longer training set keeps its test cases
_GROWING = ("num_val", "num_test")  # those in a finished folder may grow; training cases make another data set
VERSION = 2  # raise it when the voxels of a seed change


def generate_dataset(
    root: str | Path,
    num_train: int = 96,
    num_val: int = 10,
    num_test: int = 12,
    size: int = 32,
    extent_mm: float | int = 256.0,
    seed: int = 0,
    camera: str = "lumbar",
    workers: int | None = None,
    region: str = "lumbar",
) -> Path:
    """Write a prepared folder of phantoms, every case its own patient, and return it.

    size: voxels per side, over ``extent_mm``. region: see ``make_phantom``. workers: processes; None decides from cores
    and work. A finished folder of the same settings is left alone; an interrupted one is completed, and so is one of
    fewer validation or test cases, with a note. UserError where `root` holds anything else, on another region, and when
    the disk is full or another process writes there: under torchrun, rank 0 alone calls it.
    """
    root = Path(root)
    check_choice("dataset.generate.region", region, REGIONS)
    settings = {
        "generator": "phantom", "version": VERSION, "region": region, "size": size,
        "extent_mm": float(extent_mm), "seed": seed,
        "num_train": num_train, "num_val": num_val, "num_test": num_test, "preset": camera,
    }  # fmt: skip
    if _finished(root, settings):
        return root
    with only_writer(root):
        _write_missing(root, settings, workers)
    return root


def _write_missing(root: Path, settings: Mapping[str, Any], workers: int | None) -> None:
    """Write the phantoms that a prepared folder has not yet, then its tables."""
    if _finished(root, settings):  # by another process meanwhile
        return
    if (root / "dataset.json").exists():
        before = json.loads((root / "phantom.json").read_text(encoding="utf-8"))
        added = [f"{key} {before[key]} -> {settings[key]}" for key in _GROWING if before[key] != settings[key]]
        print(f"note: {root}: cases are added to it ({', '.join(added)})", file=sys.stderr)
        (root / "dataset.json").unlink()
    write_text(root / "phantom.json", json.dumps(settings, indent=1) + "\n")
    counts = {part: settings[f"num_{part}"] for part in FIRST_INDEX}
    split = {part: [f"phantom_{part}_{i:05d}" for i in range(n)] for part, n in counts.items()}
    missing = [
        (case_id, FIRST_INDEX[part] + i)
        for part, ids in split.items()
        for i, case_id in enumerate(ids)
        if read_case(root, case_id) is None
    ]
    size, extent, region = (settings[key] for key in ("size", "extent_mm", "region"))
    if workers is None:  # one where starting others, some seconds each, takes longer than the work
        seconds = len(missing) * 0.5 * (max(size, MIN_PAINTED_SIZE) / 128) ** 2
        workers = num_cores() if seconds > 10 else 1
    try:
        with tqdm(total=len(missing), desc="phantoms", unit="case", disable=not missing) as progress:
            for _ in run_in_workers(partial(_write_phantom, root, settings), missing, min(workers, len(missing))):
                progress.update()
        name = "phantom" if region == "lumbar" else f"phantom_{region}"
        finish_dataset(root, name, split, {**settings, "spacing": [extent / size] * 3, "window": list(HU_WINDOW)})
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(f"{root}: the disk is full; free space and start again, finished phantoms are kept") from error
    except BrokenProcessPool as error:
        raise UserError(f"{root}: a worker was killed (out of memory?); start again with fewer workers") from error


def _finished(root: Path, settings: Mapping[str, Any]) -> bool:
    """True if all phantoms of these settings are there. UserError if `root` holds anything else than some of them."""
    try:
        stored = json.loads((root / "phantom.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "dataset.json").exists() or (root / "cases").exists():
            raise UserError(f"{root}: holds another data set; choose another dataset.root, or remove it") from None
        return False
    except ValueError:
        stored = {}
    stored = stored if isinstance(stored, dict) else {}
    other = {key: stored.get(key) for key in settings if stored.get(key) != settings[key]}
    if all(key in _GROWING and isinstance(n, int) and n < settings[key] for key, n in other.items()):
        return not other and (root / "dataset.json").exists()
    shown = ", ".join(f"{key}={value}" for key, value in other.items())
    raise UserError(f"{root}: holds phantoms of other settings ({shown}); remove it, or choose another dataset.root")


def _write_phantom(root: Path, settings: Mapping[str, Any], case: tuple[str, int]) -> None:
    case_id, index = case
    seed, region = settings["seed"], settings["region"]
    phantom = make_phantom(seed, index, settings["size"], settings["extent_mm"], region)
    meta = {
        "patient": case_id,
        "source": f"phantom v{VERSION} {region} seed={seed} index={index}",
        "sha256": hashlib.sha256(phantom.hu.tobytes()).hexdigest(),
        "phantom": phantom.meta,
    }
    camera = settings["preset"]
    write_case(root, case_id, phantom.hu, phantom.spacing, phantom.origin, camera, labels=phantom.labels, meta=meta)
