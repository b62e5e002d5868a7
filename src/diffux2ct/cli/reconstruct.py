"""``python scripts/reconstruct.py ckpt= frontal= lateral= out=``: two X-ray files in, a CT out."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from diffux2ct import __version__, build
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.data.io.camera_file import CameraFile, check_extent, read_camera_files
from diffux2ct.data.io.ct_image import triple
from diffux2ct.data.io.volume import write_nifti
from diffux2ct.data.io.xray_file import XrayImage, fit_xray, read_xray
from diffux2ct.data.prepared.dataset import normalize_xray, read_description
from diffux2ct.errors import UserError
from diffux2ct.intensity import denormalize_hu
from diffux2ct.training.settings import resolve_device
from diffux2ct.types import VIEWS
from diffux2ct.viz.slices import display_xray, grey, save_png, upscale, with_sides
from diffux2ct.xray.camera import Camera, spacing_xyz


def run(cfg: DictConfig) -> None:
    """Reconstruct as ``cfg`` says; writes reconstruction.nii.gz, xrays_used.png and reconstruct.json to ``cfg.out``."""
    for key, choices in (("weights", ("ema", "raw")), ("precision", ("fp32", "bf16"))):
        if cfg[key] not in choices:
            raise UserError(f"{key}={cfg[key]}: choose {' or '.join(choices)}")
    ckpt, out, paths = Path(cfg.ckpt), Path(cfg.out), {view: Path(cfg[view]) for view in VIEWS}
    images, hashes = _read_views(paths, cfg.head_up)
    given = None if cfg.origin is None else _three("origin", cfg.origin)
    cameras = read_camera_files(paths)
    loaded = build.load_run(ckpt, cfg.device, cfg.weights)
    dataset = loaded.cfg.dataset
    size, spacing = (
        (int(dataset.size), list(spacing_xyz(cfg.spacing)))
        if cfg.spacing is not None
        else model_grid(dataset)
    )
    notes = check_cameras(cameras, size, spacing, dataset)
    origin, origin_source = place(cameras, size, spacing, given)
    xrays = prepare_xrays(images, size, dataset.xray_normalization)
    sampling = loaded.sampling(cfg.sampler)
    device = resolve_device(cfg.device)
    start = time.perf_counter()
    volume = _sample(loaded, xrays, device, cfg, sampling)
    hu = np.asarray(denormalize_hu(volume.clamp(-1, 1), tuple(dataset.window)))
    record = {
        "diffux2ct": __version__,
        "checkpoint": {"path": str(loaded.path), "sha256": _sha256(loaded.path), "step": loaded.step},
        "run": loaded.cfg.name,
        "weights": cfg.weights,
        "xrays": {view: _describe(image, hashes[view]) for view, image in images.items()},
        "xray_normalization": dataset.xray_normalization,
        "seed": cfg.seed,
        "sampler": sampling,
        "size": size,
        "spacing": spacing,
        "origin": origin,
        "origin_source": origin_source,
        "notes": notes,
        "window": list(dataset.window),
        "device": str(device),
        "precision": cfg.precision,
        "seconds": round(time.perf_counter() - start, 3),
    }
    write_outputs(out, np.round(hu).astype(np.int16), spacing, origin, xrays, record)
    for note in notes:
        print(f"warning: {note}")
    print(f"reconstruction: {out / 'reconstruction.nii.gz'} (position: {origin_source})")
    print(f"X-rays as used: {out / 'xrays_used.png'}")


def _read_views(
    paths: Mapping[str, Path], head_up: bool | None
) -> tuple[dict[str, XrayImage], dict[str, str]]:
    """The X-rays and their files' SHA-256, by view. Raises UserError where both are one image."""
    images = {view: read_xray(path, head_up) for view, path in paths.items()}
    hashes = {view: _sha256(path) for view, path in paths.items()}
    if len(set(hashes.values())) < len(hashes):
        raise UserError(
            f"{paths['lateral']}: the same image as frontal={paths['frontal']}; give the other view"
        )
    return images, hashes


def _sample(
    loaded: build.LoadedRun,
    xrays: Mapping[str, Tensor],
    device: torch.device,
    cfg: DictConfig,
    sampling: Mapping[str, Any],
) -> Tensor:
    """The model's volume [D, H, W] in its own range, float32 on the CPU. Raises UserError where it is not finite."""
    # The generator stays on the CPU, so that a seed gives the same noise on every device.
    generator = torch.Generator().manual_seed(cfg.seed)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        on_device = {view: image.to(device) for view, image in xrays.items()}
        volume = loaded.reconstructor.reconstruct(on_device, generator=generator, **sampling)
    volume = volume[0, 0].float().cpu()
    if not torch.isfinite(volume).all():
        raise UserError(
            f"{loaded.path}: the reconstruction holds NaN or infinite values; use another checkpoint"
        )
    return volume


def prepare_xrays(images: Mapping[str, XrayImage], size: int, normalization: str) -> dict[str, Tensor]:
    """Radiographs as the model wants them: [1, 1, size, size] in [-1, 1].

    Raises UserError where a model that was trained on absolute line integrals is given grey levels.
    """
    for image in images.values():
        if normalization == "fixed" and not image.is_line_integral:
            raise UserError(
                f"{image.meta['path']}: grey levels, but this model was trained on absolute line integrals "
                "(xray_normalization=fixed); give a .npy of line integrals, or a model trained with max"
            )
    fitted = {view: torch.from_numpy(fit_xray(image, size, size).values) for view, image in images.items()}
    return {view: normalize_xray(values, normalization)[None, None] for view, values in fitted.items()}


def check_cameras(
    cameras: Mapping[str, CameraFile], size: int, spacing: list[float], dataset: DictConfig
) -> list[str]:
    """UserError where the X-rays show another cube than the model makes; notes on what is odd and can still be used."""
    notes = []
    trained, geometry = _trained_camera(dataset)
    for known in cameras.values():
        check_extent(known, triple([size * step for step in spacing]))
        if known.output == "max" and dataset.xray_normalization == "fixed":
            raise UserError(
                f"{known.path}: output=max, but this model was trained on absolute line integrals; write the X-rays "
                "again with output=line_integral"
            )
        if trained and known.camera != trained:
            notes.append(f"{known.path}: camera {known.camera}, but the model was trained on {trained}")
        elif differences := _geometry_differs(known, geometry):
            notes.append(f"{known.path}: camera {known.camera}, but the model was trained on {differences}")
        if known.moved:
            notes.append(
                f"{known.path}: the patient was turned or shifted, so the CT will not lie on the scan"
            )
    return list(dict.fromkeys(notes))


def place(
    cameras: Mapping[str, CameraFile], size: int, spacing: list[float], given: list[float] | None
) -> tuple[list[float], str]:
    """Origin (x, y, z) in mm LPS of the CT's first voxel, and where that is from.

    With camera.json for both views the CT has the centre of the cube that was X-rayed, so that it overlays the scan.
    """
    if given is not None:
        return given, "given"
    # The isocentre, which both X-rays look at, is the middle of the volume.
    centre, source = (0.0, 0.0, 0.0), "arbitrary: centred at 0"
    if len(cameras) == len(VIEWS):
        centre, source = next(iter(cameras.values())).centre, "camera.json"
    return [c - (size - 1) / 2 * step for c, step in zip(centre, spacing, strict=True)], source


def write_outputs(
    out: Path,
    hu: np.ndarray,
    spacing: list[float],
    origin: list[float],
    xrays: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> None:
    """Write the three files; each appears whole, and the record, which vouches for the others, last."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; out= is a folder")
    partial = out / f".partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        write_nifti(partial / "reconstruction.nii.gz", hu, spacing, origin)
        pictures = [
            with_sides(upscale(grey(display_xray(xrays[view][0, 0].numpy()), (-1.0, 1.0)), 256), view)
            for view in VIEWS
        ]
        save_png(partial / "xrays_used.png", np.concatenate(pictures, axis=1))
        (partial / "reconstruct.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        # An older record must not vouch for a newer volume, should we be interrupted in between.
        (out / "reconstruct.json").unlink(missing_ok=True)
        for name in ("reconstruction.nii.gz", "xrays_used.png", "reconstruct.json"):
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def model_grid(dataset: DictConfig) -> tuple[int, list[float]]:
    """Voxels per side and spacing (x, y, z) in mm of what a model makes that was trained on ``dataset``.

    The prepared folder knows best; where it is not at hand, the settings that it was made with tell.
    """
    size = dataset.get("size")
    if dataset.get("spacing") is not None and size is not None:
        return int(size), list(spacing_xyz(dataset.spacing))
    made: Any = dataset.get("prepare")
    if (Path(dataset.root) / "dataset.json").is_file():
        made = read_description(dataset.root)
    elif dataset.get("generate") is not None and size is not None:
        return int(size), list(spacing_xyz(dataset.generate.extent_mm / size))
    if made is None:
        raise UserError(f"{dataset.root}: not there, so the voxel spacing is unknown; add spacing=MM")
    size = int(made["size"] if size is None else size)
    return size, [s * made["size"] / size for s in spacing_xyz(made["spacing"])]


def _trained_camera(dataset: DictConfig) -> tuple[str | None, Mapping[str, Any] | None]:
    """Preset and geometry of the camera that a model was trained on; where its prepared folder is gone, the preset."""
    if (Path(dataset.root) / "dataset.json").is_file():
        description = read_description(dataset.root)
        return description.get("preset"), description.get("camera")
    made = dataset.get("generate") or dataset.get("prepare") or {}
    return made.get("camera"), None


def _geometry_differs(known: CameraFile, trained: Mapping[str, Any] | None) -> str:
    """How the camera of the model's training differs from that of the X-rays; empty where it does not.

    A preset may have changed since. The panels may have other pixels, if they are of one size.
    """
    given = _geometry(known.geometry)
    wanted = _geometry(trained)
    return ", ".join(
        f"{key}={value} (these: {given[key]})"
        for key, value in wanted.items()
        if key in given and (value != given[key] if isinstance(value, str) else not _near(value, given[key]))
    )


def _geometry(camera: Mapping[str, Any] | None) -> dict[str, Any]:
    """What one camera's X-rays have in common whatever their pixels; empty where it is not fully told."""
    try:
        told = Camera.from_dict(camera or {})
    except UserError:
        return {}
    panel = [round(told.rows * told.pitch[0], 3), round(told.cols * told.pitch[1], 3)]
    return {"kind": told.kind, "sad": told.sad, "sid": told.sid, "reverse": told.reverse, "panel": panel}


def _near(a: Any, b: Any) -> bool:
    return np.allclose(a, b, rtol=0.01, atol=0)


def _three(name: str, value: Any) -> list[float]:
    try:
        x, y, z = (float(number) for number in value)
    except (TypeError, ValueError):
        x = y = z = float("nan")
    if not np.isfinite((x, y, z)).all():
        raise UserError(f"{name}={value}: give three numbers (x, y, z) in mm, for instance '{name}=[0,0,10]'")
    return [x, y, z]


def _describe(image: XrayImage, sha256: str) -> dict[str, Any]:
    pitch = list(image.pixel_pitch) if image.pixel_pitch else None
    shape = list(image.values.shape)
    return image.meta | {
        "sha256": sha256,
        "shape": shape,
        "pixel_pitch": pitch,
        "line_integrals": image.is_line_integral,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Console entry."""
    hydra_app("reconstruct", run)
