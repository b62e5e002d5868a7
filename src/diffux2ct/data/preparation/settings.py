"""Settings of a prepared case, with the defaults of the paper (configs/dataset/prepare/paper.yaml)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffux2ct.arguments import check_choice
from diffux2ct.errors import UserError
from diffux2ct.intensity import HU_WINDOW
from diffux2ct.xray.attenuation import ATTENUATIONS
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import PROJECTORS

GRIDS = ("centre", "x2ct", "lumbar", "stored")


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of a case.

    size, spacing: the cube, voxels per side and mm. camera: a ``camera_preset``. window: HU that are kept. seed: of
    crops, implants and poses. grid: the place of the cube (``cube_centre``; stored: cut already). remove_couch: all but
    the patient becomes air. instrument: arguments of ``data.instrumentation.instrument``. projector, attenuation: see
    ``xray.drr``. pose_jitter: {"degrees", "mm"}, the most by which a view is off its place. min_filled: cubes of which
    the scan fills a smaller share (0 to 1; the rest is padding) are left out.
    """

    size: int = 128
    spacing: float | int = 2.0
    camera: str = "lumbar"
    window: tuple[float | int, float | int] = HU_WINDOW
    seed: int = 0
    grid: str = "centre"
    remove_couch: bool = False
    instrument: Mapping[str, Any] | None = None
    projector: str = "joseph"
    attenuation: str = "plastimatch"
    pose_jitter: Mapping[str, Any] | None = None
    min_filled: float | int = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as case.json keeps them."""
        return {
            **asdict(self),
            "size": int(self.size),
            "spacing": float(self.spacing),
            "window": [float(w) for w in self.window],
            "seed": int(self.seed),
            "min_filled": float(self.min_filled),
            "instrument": _plain(self.instrument),
            "pose_jitter": _plain(self.pose_jitter),
        }

    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Raises UserError, naming the setting, if one of them is invalid."""
        if self.size < 8:
            raise UserError(f"size={self.size}: give the voxels per side, at least 8")
        if not self.spacing > 0:
            raise UserError(f"spacing={self.spacing}: give the voxel side in mm, above 0")
        if not self.window[0] < self.window[1]:
            raise UserError(f"window={list(self.window)}: give [lower, upper] in HU")
        camera_preset(self.camera, self.size, float(self.spacing))  # its own UserError for an unknown name
        for key, known in (("grid", GRIDS), ("projector", PROJECTORS), ("attenuation", ATTENUATIONS)):
            check_choice(key, getattr(self, key), known)
        if not 0 <= self.min_filled <= 1:
            raise UserError(f"min_filled={self.min_filled}: give a share of the cube, from 0 to 1")
        jitter = {"degrees": 0, "mm": 0} if self.pose_jitter is None else dict(self.pose_jitter)
        if set(jitter) != {"degrees", "mm"} or not all(isinstance(v, int | float) and v >= 0 for v in jitter.values()):
            raise UserError(f"pose_jitter={jitter}: give {{degrees: 3, mm: 5}}, the most that a view is off, or null")
        if self.instrument is not None:
            if not isinstance(self.instrument, Mapping):
                raise UserError(f"instrument={self.instrument}: give its settings {{levels: [1, 4]}}, or null")
            from diffux2ct.data.instrumentation import InstrumentSettings

            InstrumentSettings.from_dict(self.instrument)


def changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """``key=old (now new)`` of every setting that differs; missing in an older folder, it has its default."""
    defaults = PrepareSettings().as_dict()
    then = {key: before.get(key, defaults.get(key)) for key in now}
    return [f"{key}={then[key]} (now {now[key]})" for key in now if then[key] != now[key]]


def camera_changed(settings: PrepareSettings, before: Mapping[str, Any] | None) -> list[str]:
    """As ``changed``, for the camera's geometry that an older folder records, if it does: a preset may have changed."""
    if not before:
        return []
    now = camera_preset(settings.camera, settings.size, float(settings.spacing)).to_dict()
    then = {"reverse": False} | dict(before)  # missing in the oldest folders
    return [f"camera.{key}={then.get(key)} (now {now[key]})" for key in now if not _same(then.get(key), now[key])]


def _same(a: Any, b: Any) -> bool:
    if a is None or isinstance(b, str | bool):
        return a == b
    try:
        return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=0)
    except (TypeError, ValueError):  # no numbers
        return False


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return (
        None
        if values is None
        else {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    )
