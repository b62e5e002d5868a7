"""``synthesize_drr.py``: one CT in, its frontal and lateral digitally reconstructed radiographs out."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from diffux2ct import __version__
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.errors import UserError
from diffux2ct.geometry.camera import Camera, camera_preset
from diffux2ct.geometry.projector import drr_pair

_PNG_MAX = 2**16 - 1


def main() -> None:
    """Entry of scripts/synthesize_drr.py and of the installed command."""
    hydra_app("drr", run)


def run(cfg: DictConfig) -> None:
    """Read ``cfg.ct``, render both views and write the folder ``cfg.out``, whole or not at all.

    Raises:
        UserError: a setting or the CT is not usable.
    """
    # Imported here so that --help answers at once.
    from diffux2ct.data.volume_io import crop_or_pad, read_ct, resample

    source, out = _path(cfg, "ct"), _path(cfg, "out")
    size = _whole("size", cfg.size)
    spacing = _number("spacing", cfg.spacing)
    window = _window(cfg.window)
    camera = camera_preset(str(cfg.camera), size, spacing)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give out= a folder")

    ct = read_ct(source)
    for note in ct.meta.get("notes", ()):
        print(note)
    ct = crop_or_pad(resample(ct, spacing), size)
    hu = np.asarray(ct.hu, dtype=np.float32)
    if window is not None:
        hu = hu.clip(*window)
    images = drr_pair(hu, ct.spacing, camera, size)
    record = _describe(
        camera, images, source=source, size=size, spacing=ct.spacing, origin=ct.origin, window=window
    )
    _write(out, images, record)
    peaks = ", ".join(f"{view} up to {image.max():.2f}" for view, image in images.items())
    print(f"wrote {out}: {peaks} (line integrals, {size}x{size}, camera {camera.name})")


def _describe(
    camera: Camera, images: Mapping[str, np.ndarray], *, source: Path, **geometry: Any
) -> dict[str, Any]:
    window = geometry["window"]
    return {
        "camera": camera.to_dict(),
        "source": str(source),
        "size": geometry["size"],
        "spacing": list(geometry["spacing"]),
        "origin": list(geometry["origin"]),
        "window": None if window is None else list(window),
        # A PNG's grey level times this is the line integral.
        "png_scale": {view: _png_scale(image) for view, image in images.items()},
        "units": {
            "camera": "mm; pitch is (rows, columns) on the panel",
            "spacing": "mm (x, y, z)",
            "origin": "mm (x, y, z), LPS, centre of the first voxel",
            "window": "HU, clipped before projection",
            "npy": "line integral of attenuation 0.022/mm * (1 + HU/1000), dimensionless, no exponential",
            "png_scale": "line integral per grey level",
        },
        "axes": {
            "npy": "rows to Superior; columns to Left (frontal) or Posterior (lateral)",
            "png": "as npy with the rows reversed, so that the head is up",
        },
        "version": __version__,
    }


def _write(out: Path, images: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write everything beside ``out``, then move it in: a failure leaves ``out`` as it was."""
    partial = out.with_name(f".{out.name or 'drr'}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for view, image in images.items():
            np.save(partial / f"{view}.npy", image)
            grey = np.round(image[::-1] / record["png_scale"][view]).astype(np.uint16)
            Image.fromarray(grey).save(partial / f"{view}.png")
        (partial / "camera.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        out.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir()):
            os.replace(file, out / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _png_scale(image: np.ndarray) -> float:
    return float(image.max()) / _PNG_MAX or 1.0


def _path(cfg: DictConfig, key: str) -> Path:
    if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
        raise UserError(f"{key} is not given; add {key}=PATH to the command (--help explains it)")
    return Path(str(cfg[key]))


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2048:
        raise UserError(
            f"{name}={value}: give a whole number of voxels from 1 to 2048, for instance {name}=128"
        )
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise UserError(f"{name}={value}: give a positive number of mm, for instance {name}=2.0")
    return float(value)


def _window(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(edge) for edge in value)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise UserError(f"window={value}: give two rising HU, for instance 'window=[-1024,1500]', or null")
    return low, high
