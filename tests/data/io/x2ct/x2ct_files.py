"""X2CT-GAN's files for tests: a body that looks different from every side, published as its authors do."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from diffux2ct.data.io.x2ct.file import x2ct_views
from diffux2ct.data.preparation.prepare import PrepareReport, prepare, survey

SIZE, STEP = 16, 20.0  # a cube of 320 mm


def body(number: int = 0) -> np.ndarray:
    """HU of something that looks different from every side: an off-centre torso with one bright bone in a corner.

    number: tells one body from another.
    """
    z, y, x = np.mgrid[:SIZE, :SIZE, :SIZE] / (SIZE - 1)
    hu = np.full((SIZE,) * 3, -1024.0)
    hu[(np.hypot((y - 0.5) / 0.35, (x - 0.5) / 0.42) < 1) & (z > 0.1)] = 0
    hu[12, 11, 4] = 1200 - number  # superior, posterior, right
    hu[3:9, 4:7, 9:12] = -800  # a lung, anterior left
    return np.round(hu).astype(np.int16)


def published(path: Path, hu: np.ndarray, views: dict[str, np.ndarray] | None = None) -> Path:
    """A file as X2CT-GAN publishes it, written here from what its code says: 1 mm, z and image rows from the top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    views = views or x2ct_views(hu, (STEP,) * 3, SIZE)
    with h5py.File(path, "w") as file:
        file["ct"] = (hu[::-1] + 1024).astype(np.int16)
        file["ori_size"] = np.int64(320)
        file["spacing"] = [1.0, 0.9999, 1.0001]
        for name, view in (("xray1", "frontal"), ("xray2", "lateral")):
            file[name] = (views[view] / views[view].max() * 255).astype(np.uint8)[::-1]
    return path


def import_x2ct(raw: Path, out: Path, name: str, **request: Any) -> PrepareReport:
    """``prepare`` of X2CT-GAN's files, in this process."""
    return prepare(name, raw, out, source="x2ct", workers=1, **request)


def survey_x2ct(raw: Path, **request: Any) -> tuple[list[dict[str, Any]], PrepareReport]:
    """The dry run of ``import_x2ct``."""
    return survey(raw, source="x2ct", workers=1, **request)
