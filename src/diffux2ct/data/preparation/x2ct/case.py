"""One X2CT-GAN file -> one case: its cube as it is stored, its X-rays kept. The unit of work of ``import_x2ct``."""

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.atomic import sha256_of
from diffux2ct.data.io.ct_image import content_hash
from diffux2ct.data.io.x2ct.file import X2ctScan, averaged, ct_of, read_x2ct, x2ct_views
from diffux2ct.data.io.x2ct.header import X2ctHeader
from diffux2ct.data.preparation.scan_job import ScanJob, ScanResult, guarded
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.prepared.writer import write_case
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera, camera_preset

VIEWS_STORED = "X2CT-GAN's: 8 bit, from behind and from the patient's left"
_MARGIN = 0.05  # of correlation, by which another orientation must look more like the CT to be reported
_SPACING = 0.005  # how far off the settings' spacing a file may be: the data's 1 mm is 0.999 in some


def settings_of(
    header: X2ctHeader, settings: PrepareSettings, asked: Collection[str], xrays: str, path: Path
) -> PrepareSettings:
    """The settings for a file: its own where it tells them and the user asked for no others (``asked``: their names).

    Raises UserError: settings that cannot be, or that its stored X-rays contradict.
    """
    told: dict[str, Any] = {}
    if header.ours and header.camera is not None:
        told = {"size": header.size, "camera": header.camera.name, "window": header.window}
        size = settings.size if "size" in asked else header.size
        told["spacing"] = header.spacing(size)
        if xrays == "stored":
            told |= {k: header.attrs[k] for k in ("projector", "attenuation") if k in header.attrs}
    chosen = replace(settings, **{key: value for key, value in told.items() if key not in asked})
    chosen.check()
    made = told.get("camera", "x2ct")
    if xrays == "stored" and header.has_xrays and chosen.camera != made:
        raise UserError(
            f"{path}: camera={chosen.camera}, but its X-rays were made with {made}; leave camera out, or render them "
            "anew with dataset.prepare.xrays=rendered"
        )
    step = header.spacing(chosen.size)
    if abs(step - chosen.spacing) > _SPACING * chosen.spacing:
        raise UserError(
            f"{path}: {chosen.size} voxels of its cube are {step:g} mm each, not {chosen.spacing:g}; "
            f"set spacing={step:g}"
        )
    return chosen


def import_file(job: ScanJob, *, xrays: str) -> ScanResult:
    """Write the case of one file; xrays: "stored" or "rendered". What is wrong with it comes back as a reason."""
    return guarded(job, _rendered if xrays == "rendered" else _stored)


def survey_file(job: ScanJob) -> ScanResult:
    """Read one file as ``import_file`` does and write nothing: ``found`` is what case.json would say."""
    return guarded(job, _look)


def _look(job: ScanJob, result: ScanResult) -> None:
    scan, meta = _read(job)
    result.found = meta | {"has_labels": scan.labels is not None}


def _stored(job: ScanJob, result: ScanResult) -> None:
    scan, meta = _read(job)
    images, told = _stored_xrays(scan, job)
    meta["notes"] += told.pop("notes", [])
    _write(job, scan, images, meta | told | {"settings": meta["settings"] | {"xrays": "stored"}})
    result.written += 1


def _rendered(job: ScanJob, result: ScanResult) -> None:
    scan, meta = _read(job)
    told = {"xrays": "rendered", "settings": meta["settings"] | {"xrays": "rendered"}}
    _write(job, scan, {}, meta | told)
    result.written += 1


def _read(job: ScanJob) -> tuple[X2ctScan, dict[str, Any]]:
    """The scan with as many voxels as the settings say, and what case.json shall tell of the file."""
    path, settings = job.raw.path, job.settings
    stored = read_x2ct(path)
    ct = ct_of(stored, path)
    scan = averaged(stored, settings.size, path)
    notes = list(ct.meta["notes"])
    low, high = settings.window
    if stored.header.ours and (scan.hu.min() < low or scan.hu.max() > high):
        notes.append(
            f"{path}: HU {scan.hu.min()} to {scan.hu.max()} clipped to window {low:g} to {high:g}, which its stored "
            "X-rays do not show"
        )
    if stored.labels is not None and scan.labels is None:
        notes.append(f"{path}: labels left out: they are not averaged down; import them with their own size")
    notes = [job.below_raw(note) for note in notes]
    return scan, {
        "patient": job.raw.patient,
        "source": job.source,
        "content_sha256": content_hash(ct),
        "sha256": sha256_of(path),
        "labels_are_own": scan.header.labels_are_own,
        "orig_spacing": ct.meta["spacing"],
        "orig_orientation": ct.meta["orientation"],
        "orig_size": ct.meta["size"],
        "crop": "as stored",
        "settings": settings.as_dict(),
        "settings_hash": settings.hash(),
        "notes": notes,
    }


def _write(job: ScanJob, scan: X2ctScan, images: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    settings = job.settings
    # Written aside first: the stored X-rays take the place of the rendered ones before the case appears.
    aside = job.root / f".{job.base}.importing"
    kept = bool(images)
    try:
        folder = write_case(
            aside,
            job.base,
            scan.hu,
            (settings.spacing,) * 3,
            scan.origin,
            "parallel" if kept else settings.camera,  # what is replaced may as well be made quickly
            labels=scan.labels,
            meta=meta,
            window=settings.window,
            projector="joseph" if kept else settings.projector,
            attenuation=settings.attenuation,
        )
        record: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        for view, image in images.items():
            np.save(folder / f"{view}.npy", image)
            record[f"{view}_scale"] = float(image.max())
        if kept:
            camera = _camera_of(scan, settings)
            record |= {"camera": settings.camera, "camera_geometry": camera.to_dict()}
            record |= {"projector": settings.projector, "poses": scan.header.poses}
        (folder / "case.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (job.root / "cases").mkdir(parents=True, exist_ok=True)
        os.replace(folder, job.root / "cases" / job.base)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _camera_of(scan: X2ctScan, settings: PrepareSettings) -> Camera:
    """The camera of the file's own X-rays, with the pixels that they have now."""
    camera, size, stored = scan.header.camera, settings.size, scan.header.size
    if camera is None:
        return camera_preset(settings.camera, size, settings.spacing)
    if size == stored or (camera.rows, camera.cols) != (stored, stored):
        return camera
    rows, cols = camera.pitch
    return replace(camera, rows=size, cols=size, pitch=(rows * stored / size, cols * stored / size))


def _stored_xrays(scan: X2ctScan, job: ScanJob) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The file's X-rays as line integrals, and what case.json shall tell of them."""
    attrs, scales = scan.header.attrs, scan.header.scales
    if scan.xrays is None:
        return {}, {"xrays": "rendered"}
    if scales is not None:  # our own file
        told = {"xrays": "stored", "views": attrs.get("views", "ours")}
        told["xrays_scale"] = attrs.get("xrays_scale", "stored")
        return {view: image * np.float32(scales[view]) for view, image in scan.xrays.items()}, told
    hu = np.clip(scan.hu, *job.settings.window)
    rendered = x2ct_views(hu, scan.spacing, scan.xrays["frontal"].shape[0])
    look = {view: orientation(scan.xrays[view], rendered[view]) for view in VIEWS}
    told: dict[str, Any] = {"xrays": "stored", "xrays_scale": "estimated", "views": VIEWS_STORED}
    if odd := {view: name for view, name in look.items() if name != "as the CT"}:
        told["xrays_look"] = odd
        looks = ", ".join(f"{view} {name}" for view, name in odd.items())
        told["notes"] = [
            f"{job.source}: X-rays look flipped against their CT ({looks}); kept: check the file"
        ]
    return {view: image * np.float32(rendered[view].max()) for view, image in scan.xrays.items()}, told


def orientation(image: np.ndarray, rendered: np.ndarray) -> str:
    """Which flip of an X-ray looks most like the rendered one: "as the CT" unless another is clearly better."""
    flips = {
        "as the CT": image,
        "mirrored": image[:, ::-1],
        "upside down": image[::-1],
        "turned around": image[::-1, ::-1],
    }
    if image.shape != rendered.shape or image.std() == 0 or rendered.std() == 0:
        return "as the CT"
    like = {name: np.corrcoef(flip.ravel(), rendered.ravel())[0, 1] for name, flip in flips.items()}
    best = max(like, key=lambda name: like[name])
    return best if like[best] > like["as the CT"] + _MARGIN else "as the CT"
