"""One raw scan -> its cases: orient, low-pass and resample, cut, clip, project. The unit of work of ``prepare``."""

import errno
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.data.case_writer import read_case, write_case
from diffux2ct.data.sources import RawCase
from diffux2ct.errors import UserError
from diffux2ct.geometry.hounsfield import HU_WINDOW

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_JITTER = 0.1  # of the cube's side: how far off centre a random crop may lie where the scan is shorter than the cube
_BODY_HU = -800  # at or below this nothing attenuates, so that an X-ray would be empty


@dataclass(frozen=True)
class PrepareSettings:
    """What decides the content of a case: cube of ``size`` voxels of ``spacing`` mm, camera preset, HU window, seed."""

    size: int = 128
    spacing: float = 2.0
    camera: str = "lumbar"
    window: tuple[float, float] = HU_WINDOW
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as case.json keeps them."""
        return {
            "size": int(self.size),
            "spacing": float(self.spacing),
            "camera": self.camera,
            "window": [float(w) for w in self.window],
            "seed": int(self.seed),
        }

    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ScanJob:
    """One scan and the cases to cut from it; ``num_crops`` 0 = one case from the scan's centre."""

    root: Path
    raw_root: Path
    raw: RawCase
    base: str
    num_crops: int
    settings: PrepareSettings

    @property
    def case_ids(self) -> list[str]:
        """Names of the scan's case folders."""
        return [f"{self.base}_c{i:02d}" for i in range(self.num_crops)] if self.num_crops else [self.base]

    @property
    def source(self) -> str:
        """The scan's path below the raw folder."""
        return str(self.raw.path.relative_to(self.raw_root)) or "."


@dataclass
class ScanResult:
    """Cases written, notes for the user, and why the scan cannot be used (None if it can)."""

    written: int = 0
    reason: str | None = None
    notes: list[str] = field(default_factory=list)


def prepare_scan(job: ScanJob) -> ScanResult:
    """Cut the missing cases of one scan. What is wrong with the scan comes back as a reason; a full disk is raised."""
    result = ScanResult()
    try:
        _cut_cases(job, result)
    except UserError as error:
        result.reason = str(error)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        result.reason = f"{job.raw.path}: {error.strerror or error}"
    except Exception as error:  # one odd scan of a thousand must not end the night's run
        result.reason = f"{job.raw.path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return result


def _cut_cases(job: ScanJob, result: ScanResult) -> None:
    # Imported here so that phantoms, which use the same writer, need no SimpleITK.
    from diffux2ct.data.volume_io import blur_for, read_ct, read_labels, sample_grid, sample_labels

    settings = job.settings
    ct = read_ct(job.raw.path)
    result.notes += ct.meta["notes"]
    labels = None
    if job.raw.labels is not None:
        try:
            labels = read_labels(job.raw.labels)
        except UserError as error:
            result.notes.append(f"labels left out: {error}")
    meta = {
        "patient": job.raw.patient,
        "source": job.source,
        "sha256": sha256_of(job.raw.path),
        "orig_spacing": ct.meta["spacing"],
        "orig_orientation": ct.meta["orientation"],
        "orig_size": ct.meta["size"],
        "settings": settings.as_dict(),
        "settings_hash": settings.hash(),
    }
    smooth = blur_for(ct, settings.spacing)
    side = settings.size * settings.spacing
    centres = random_centres(
        ct.origin, ct.spacing, ct.hu.shape[::-1], side, job.num_crops, job.base, settings.seed
    )
    for index, case_id in enumerate(job.case_ids):
        if read_case(job.root, case_id) is not None:
            continue
        centre = centres[index] if job.num_crops else np.array(ct.centre)
        origin = (centre - (settings.size - 1) / 2 * settings.spacing).tolist()
        grid = (settings.spacing, (settings.size,) * 3, origin)
        cube = sample_grid(smooth, *grid)
        if cube.hu.max() <= _BODY_HU:
            raise UserError(f"{job.raw.path}: the crop holds only air; are spacing and HU right?")
        crop = {"crop": [round(float(c), 3) for c in centre] if job.num_crops else "centre"}
        cut = None if labels is None else sample_labels(labels, *grid)
        write_case(
            job.root,
            case_id,
            cube.hu,
            cube.spacing,
            cube.origin,
            settings.camera,
            labels=cut,
            meta=meta | crop,
            window=settings.window,
        )
        result.written += 1


def random_centres(
    origin: Sequence[float],
    spacing: Sequence[float],
    shape: Sequence[int],
    side: float,
    num: int,
    key: str,
    seed: int,
) -> np.ndarray:
    """``num`` cube centres [num, 3] in mm (x, y, z), uniform where a cube of ``side`` mm stays inside the scan.

    Along an axis where the scan is shorter than the cube, the centre moves by up to a tenth of the side, as far as the
    scan stays inside the cube. They depend on ``key`` and ``seed`` alone, so neither on other scans nor on ``num``.
    """
    extent = np.array(shape) * np.array(spacing)
    middle = np.array(origin) + (extent - np.array(spacing)) / 2
    slack = (extent - side) / 2
    reach = np.where(slack >= 0, slack, np.minimum(-slack, _JITTER * side))
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    return middle + generator.uniform(-1.0, 1.0, size=(num, 3)) * reach


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's file hashes in the order of their names."""
    if path.is_dir():
        hashes = [sha256_of(p) for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
