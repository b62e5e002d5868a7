"""``grid: stored``: X2CT-GAN's files, whose cubes are cut already and come with X-rays of their own.

The plan reads headers alone. A file that ``export_x2ct`` wrote carries camera, window and patient, and comes back as it
was.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.data.io.x2ct.file import VIEWS_STORED, X2ctScan, averaged, ct_of, read_x2ct, x2ct_views
from diffux2ct.data.io.x2ct.header import X2ctHeader, need_h5py, read_x2ct_header
from diffux2ct.data.preparation.plan import Plan, Request, case_names
from diffux2ct.data.preparation.scan_job import ScanJob, ScanResult, describe, guarded
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.prepared.split import resolve_conflicts, split_patients
from diffux2ct.data.prepared.writer import write_case
from diffux2ct.data.sources import discover
from diffux2ct.data.sources.x2ct import scan_name
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import sha256_of
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera, camera_preset

# configs/dataset/x2ct.yaml
SETTINGS = PrepareSettings(
    size=128, spacing=2.5, camera="x2ct", window=(-1024.0, 1476.0), grid="stored", projector="siddon"
)
SPLIT = {"val": 8, "test": 101, "of": 1010, "file": None}
_IDLE = ("grid", "remove_couch", "instrument", "pose_jitter", "min_filled")  # settings of the cut
_IDLE_REQUEST = ("crops", "test_crops", "origins", "rescale", "labels")
_IDLE_STORED = ("projector", "attenuation")  # settings of rendered X-rays
_MARGIN = 0.05  # of correlation, by which another orientation must look more like the CT to be reported
_SPACING = 0.005  # relative distance of a file's spacing from the settings': the data's 1 mm is 0.999 in some


def plan_stored(raw: Path, out: Path, request: Request) -> Plan:
    """The jobs of a folder of X2CT-GAN's files; files that cannot be used are in ``bad``. Writes nothing.

    request: settings (None: ``SETTINGS``) hold unless a file of ``export_x2ct`` declares its own and ``asked`` does not
    name them; a size below the stored one averages. split None: the lists that lie in raw, or ``SPLIT``.
    Raises UserError for settings that are invalid or have no effect, and where no file can be used.
    """
    settings = request.settings or SETTINGS
    asked = _checked(request, settings)
    found = discover("x2ct", raw)
    need_h5py(found.cases[0].path)
    bad: list[tuple[str, str]] = []
    names = case_names([replace(case, patient=scan_name(case.path) or case.patient) for case in found.cases])
    jobs, ours = [], False
    patients = {case.patient: case.patient for case in found.cases}
    # The settings of each file, by its header.
    for case, base in zip(found.cases, names, strict=True):
        job = ScanJob(out, raw, case, base, 0, settings, xrays=request.xrays)
        read = guarded(job, _read_header)
        header: X2ctHeader | None = read.found.get("header")
        if header is None:
            bad.append((job.source, read.reason or ""))
            continue
        patients[case.patient] = header.attrs.get("patient", case.patient)
        try:
            chosen = _settings_of(header, settings, asked, request.xrays, case.path)
        except UserError as error:
            bad.append((job.source, job.below_raw(str(error).removeprefix(f"{case.path}: "))))
            continue
        jobs.append(replace(job, raw=replace(case, patient=patients[case.patient]), settings=chosen))
        ours = ours or header.ours
    jobs = _alike(jobs, bad)
    if not jobs:
        source, reason = min(bad)
        raise UserError(f"{raw}: none of {len(names)} files could be used; the first: {source}: {reason}")
    # Patients by part.
    notes = list(found.notes)
    if ours:
        chosen = jobs[0].settings
        keys, window = f"size={chosen.size}", "window=[{:g},{:g}]".format(*chosen.window)
        notes.append(
            f"as export_x2ct wrote it: {keys} spacing={chosen.spacing:g} camera={chosen.camera} {window}; "
            f"to train on it: dataset.{keys} dataset.{window}"
        )
    everyone = sorted({*patients.values(), *(job.raw.patient for job in jobs)})
    lists, split = None, request.split
    if found.split is not None:  # of cases, where the files are ours
        lists, conflicts = resolve_conflicts(
            {part: [patients.get(n, n) for n in members] for part, members in found.split.items()}
        )
        notes += conflicts
    if split is None or (isinstance(split, Mapping) and dict(split) == SPLIT):
        split = SPLIT if lists is None else _by_lists(ours, notes)
    parts = split_patients(everyone, split, settings.seed, official=lists, notes=notes)
    jobs.sort(key=lambda job: job.base)
    return Plan(jobs, parts, list(found.left_out), notes, {"source": "x2ct", "xrays": request.xrays}, bad)


def _by_lists(ours: bool, notes: list[str]) -> dict[str, Any]:
    """The split by the lists that lie in raw. A val of none in our own is meant; X2CT-GAN's have no such list."""
    notes.append("split: by the lists that lie in raw; dataset.prepare.split.test=0.1, say, draws another")
    return {"file": "official", "val": 0 if ours else SPLIT["val"]}


def cut_stored(job: ScanJob, result: ScanResult) -> None:
    """Write the case of one file: its cube as it is stored, its X-rays kept or rendered anew."""
    scan, meta = _read(job)
    settings = job.settings
    kept, about = (None, {"xrays": "rendered"}) if job.xrays == "rendered" else _stored_xrays(scan, job)
    meta["notes"] += about.pop("notes", [])
    write_case(
        job.root,
        job.base,
        scan.hu,
        (settings.spacing,) * 3,
        scan.origin,
        settings.camera,
        labels=scan.labels,
        meta=meta | about | {"crop": "as stored"},
        window=settings.window,
        projector=settings.projector,
        attenuation=settings.attenuation,
        xrays=kept,
        camera=None if kept is None else _camera_of(scan, settings),
        poses=None if kept is None else scan.header.poses,
    )
    result.written += 1


def look_at_stored(job: ScanJob, result: ScanResult) -> None:
    """Read one file as ``cut_stored`` does and write nothing."""
    scan, meta = _read(job)
    result.found = meta | {"has_labels": scan.labels is not None, "filled": [1.0]}


def orientation(image: np.ndarray, rendered: np.ndarray) -> str:
    """The flip of an X-ray that looks most like the rendered one: "as the CT" unless another is clearly better."""
    flips = {"as the CT": image, "mirrored": image[:, ::-1], "upside down": image[::-1]}
    flips["turned around"] = image[::-1, ::-1]
    if image.shape != rendered.shape or image.std() == 0 or rendered.std() == 0:
        return "as the CT"
    like = {name: np.corrcoef(flip.ravel(), rendered.ravel())[0, 1] for name, flip in flips.items()}
    best = max(like, key=lambda name: like[name])
    return best if like[best] > like["as the CT"] + _MARGIN else "as the CT"


# The plan.


def _checked(request: Request, settings: PrepareSettings) -> set[str]:
    """Names of the settings that the user chose. Raises UserError for an invalid one and for one without effect."""
    if request.xrays not in ("stored", "rendered"):
        raise UserError(f"xrays={request.xrays}: choose stored or rendered")
    settings.check()
    now, usual = settings.as_dict(), SETTINGS.as_dict()
    asked = {*request.asked, *(key for key in now if now[key] != usual[key])}
    idle = {key: value for key in _IDLE_REQUEST if (value := getattr(request, key))}
    idle |= {key: getattr(settings, key) for key in _IDLE if key in asked}
    for key, value in idle.items():
        raise UserError(f"{key}={value} has no effect on X2CT-GAN's cubes, which are cut already; leave it out")
    for key in _IDLE_STORED:
        if key in asked and request.xrays == "stored":
            raise UserError(
                f"{key}={getattr(settings, key)} has no effect on X2CT-GAN's X-rays, which are kept; leave it out, or "
                "give dataset.prepare.xrays=rendered"
            )
    return asked


def _read_header(job: ScanJob, result: ScanResult) -> None:
    result.found["header"] = read_x2ct_header(job.raw.path)


def _settings_of(
    header: X2ctHeader, settings: PrepareSettings, asked: Collection[str], xrays: str, path: Path
) -> PrepareSettings:
    """The settings for a file: its own where it declares them and the user chose no others (``asked``).

    Raises UserError: settings that are invalid, or that its stored X-rays contradict.
    """
    own: dict[str, Any] = {}
    if header.ours and header.camera is not None:
        own = {"size": header.size, "camera": header.camera.name, "window": header.window}
        own["spacing"] = header.spacing(settings.size if "size" in asked else header.size)
        if xrays == "stored":
            own |= {k: header.attrs[k] for k in ("projector", "attenuation") if k in header.attrs}
    chosen = replace(settings, **{key: value for key, value in own.items() if key not in asked})
    chosen.check()
    camera = own.get("camera", "x2ct")
    if xrays == "stored" and header.has_xrays and chosen.camera != camera:
        raise UserError(
            f"{path}: camera={chosen.camera}, but its X-rays were made with {camera}; leave camera out, or render them "
            "anew with dataset.prepare.xrays=rendered"
        )
    step = header.spacing(chosen.size)
    if abs(step - chosen.spacing) > _SPACING * chosen.spacing:
        raise UserError(
            f"{path}: {chosen.size} voxels of its cube are {step:g} mm each, not {chosen.spacing:g}; "
            f"set spacing={step:g}"
        )
    return chosen


def _alike(jobs: Sequence[ScanJob], bad: list[tuple[str, str]]) -> list[ScanJob]:
    """The jobs with the most frequent settings: a data set has one camera, window and grid."""
    if not jobs:
        return []
    common = Counter(job.settings.hash() for job in jobs).most_common(1)[0][0]
    kept = [job for job in jobs if job.settings.hash() == common]
    now = kept[0].settings.as_dict()
    for job in (job for job in jobs if job.settings.hash() != common):
        other = job.settings.as_dict()
        ways = [f"{key}={other[key]} (most have {now[key]})" for key in now if other[key] != now[key]]
        bad.append((job.source, f"prepared in another way than most here, {', '.join(ways)}; import it apart"))
    return kept


# One file.


def _read(job: ScanJob) -> tuple[X2ctScan, dict[str, Any]]:
    """The scan with as many voxels as the settings say, and the entries of case.json about the file."""
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
    meta = describe(job, ct, [job.below_raw(note) for note in notes])
    meta |= {"sha256": sha256_of(path), "labels_are_own": scan.header.labels_are_own}
    meta["settings"]["xrays"] = job.xrays
    return scan, meta


def _camera_of(scan: X2ctScan, settings: PrepareSettings) -> Camera:
    """The camera of the file's own X-rays, with the pixels that they have now."""
    camera, size, stored = scan.header.camera, settings.size, scan.header.size
    if camera is None:
        return camera_preset(settings.camera, size, settings.spacing)
    if size == stored or (camera.rows, camera.cols) != (stored, stored):
        return camera
    rows, cols = camera.pitch
    return replace(camera, rows=size, cols=size, pitch=(rows * stored / size, cols * stored / size))


def _stored_xrays(scan: X2ctScan, job: ScanJob) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
    """The file's X-rays as line integrals (None: it has none), and the entries of case.json about them."""
    attrs, scales = scan.header.attrs, scan.header.scales
    if scan.xrays is None:
        return None, {"xrays": "rendered"}
    about: dict[str, Any] = {"xrays": "stored"}
    if scales is not None:  # our own file
        about |= {"views": attrs.get("views", "ours"), "xrays_scale": attrs.get("xrays_scale", "stored")}
        return {view: image * np.float32(scales[view]) for view, image in scan.xrays.items()}, about
    # 8 bit, each by its own maximum: the lost scale is that of the CT rendered the same way.
    about |= {"xrays_scale": "estimated", "views": VIEWS_STORED}
    hu = np.clip(scan.hu, *job.settings.window)
    rendered = x2ct_views(hu, scan.spacing, scan.xrays["frontal"].shape[0])
    look = {view: orientation(scan.xrays[view], rendered[view]) for view in VIEWS}
    if odd := {view: name for view, name in look.items() if name != "as the CT"}:
        about["xrays_look"] = odd
        looks = ", ".join(f"{view} {name}" for view, name in odd.items())
        about["notes"] = [f"{job.source}: X-rays look flipped against their CT ({looks}); kept: check the file"]
    return {view: image * np.float32(rendered[view].max()) for view, image in scan.xrays.items()}, about
