"""X-rays of a patient to a CT: the command ``reconstruct.py`` and ``diffux2ct.reconstruct`` both call this."""

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int16
from omegaconf import DictConfig
from torch import Tensor

from diffux2ct import __version__, load
from diffux2ct.arguments import Positive, Precision, Seed, Three, Weights, Whole, convert
from diffux2ct.build import plain
from diffux2ct.data.io.camera_file import CameraFile, check_extent, geometry_differs, place, read_camera_files
from diffux2ct.data.io.ct_image import triple
from diffux2ct.data.io.volume import write_nifti
from diffux2ct.data.io.xray_file import XrayImage, fit_xray, read_xray, xray_from_array
from diffux2ct.data.prepared.dataset import read_description
from diffux2ct.diffusion.consistency import Consistency
from diffux2ct.diffusion.samplers.sampling import Sampler, sampling_record
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_files, sha256_of, write_text
from diffux2ct.intensity import normalize_xray, to_hu
from diffux2ct.reconstructors.base import Reconstructor, on_device
from diffux2ct.reconstructors.precision import autocast, effective
from diffux2ct.types import VIEWS
from diffux2ct.viz import slices
from diffux2ct.xray.camera import Camera, camera_preset, spacing_xyz
from diffux2ct.xray.pose import at_angles

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffux2ct.evaluation.uncertainty.spread import Draws

XrayInput = str | Path | np.ndarray | Tensor
FORMATS = (".nii.gz", ".nii", ".mha", ".nrrd")
_ONE_VIEW = "depth along its rays was not seen; it is what the training bodies suggest"
UNCERTAINTY = ("std_hu", "interval_low", "interval_high", "ray_support")


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """A CT that a model made of X-rays.

    hu: int16 HU, [D, H, W] = (z toward superior, y toward posterior, x toward left). spacing: (x, y, z) mm.
    origin: (x, y, z) mm LPS of the first voxel. xrays: the images as the model saw them, [1, 1, rows, cols] in
    [-1, 1], row 0 most inferior. record: what ``reconstruct.json`` holds: checkpoint, inputs, seed, sampler, notes.
    uncertainty: on the CT's grid, where asked for: "std_hu" of several draws; "interval_low" and "interval_high" (HU)
    of a calibrated model; "ray_support", 1 where rays of a view reach, where the camera is known.
    """

    hu: Int16[np.ndarray, "d h w"]
    spacing: list[float]
    origin: list[float]
    xrays: dict[str, Tensor]
    record: dict[str, Any]
    uncertainty: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Reconstruction(shape={self.hu.shape}, spacing={self.spacing}, origin={self.origin})"

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel (x, y, z) to mm in RAS, NIfTI's convention: ``nibabel.Nifti1Image(ct.hu.T, ct.affine)``."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def save(self, path: str | Path) -> None:
        """Write the CT as .nii.gz, .nii, .mha or .nrrd; the file appears whole. UserError where that cannot be."""
        path = Path(path)
        if not path.name.lower().endswith(FORMATS):
            raise UserError(f"{path}: of an unknown format; end it in {', '.join(FORMATS)}")
        try:
            write_nifti(path, self.hu, self.spacing, self.origin)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file or folder") from error

    def show(self) -> "Image":
        """One picture of the X-rays and of three planes through the bone; a notebook displays it."""
        from PIL.Image import fromarray

        planes = slices.orthoslices(self.hu, slices.bone_centre(self.hu))
        tiles = {plane: slices.grey(image, slices.WINDOWS["bone"]) for plane, image in planes.items()}
        return fromarray(slices.strip(_xray_tiles(self.xrays) | tiles))

    def _repr_png_(self) -> bytes:
        return slices.png_bytes(np.asarray(self.show()))

    def write_folder(self, out: Path) -> None:
        """Write reconstruction.nii.gz, xrays_used.png and reconstruct.json into the folder ``out``.

        Each appears whole, and the record, which vouches for the others, last.
        """
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; out= is a folder")
        with replaced_files(out, record="reconstruct.json") as partial:
            self.save(partial / "reconstruction.nii.gz")
            for name, volume in self.uncertainty.items():
                write_nifti(partial / f"{name}.nii.gz", volume, self.spacing, self.origin)
            slices.save_png(partial / "xrays_used.png", slices.strip(_xray_tiles(self.xrays)))
            write_text(partial / "reconstruct.json", json.dumps(self.record, indent=2) + "\n")
        for name in set(UNCERTAINTY) - set(self.uncertainty):  # of a former reconstruction
            (out / f"{name}.nii.gz").unlink(missing_ok=True)


def load_model(ckpt: str | Path, device: str = "auto", weights: str = "ema") -> Reconstructor:
    """The trained model of a run or checkpoint, which `reconstruct` takes in place of the path."""
    convert(Weights, weights, "weights")
    run = load.load_run(ckpt, device, weights)
    vars(run.reconstructor)["loaded_from"] = (run, weights)
    return run.reconstructor


def reconstruct(
    ckpt: str | Path | Reconstructor,
    frontal: XrayInput | None = None,
    lateral: XrayInput | None = None,
    seed: int = 0,
    *,
    others: Mapping[float | int, XrayInput] | None = None,
    sampler: Sampler | Mapping[str, Any] | None = None,
    perturbation: str | None = None,
    output: str | None = None,
    num_samples: int | None = None,
    blend: float | int | None = None,
    consistency: int | None = None,
    uncertainty: bool = False,
    line_integrals: bool = True,
    pixel_pitch: float | int | Sequence[float | int] | None = None,
    head_up: bool | None = None,
    spacing: float | int | Sequence[float | int] | None = None,
    origin: Sequence[float | int] | int | float | None = None,
    weights: str | None = None,
    device: str | None = None,
    precision: str = "bf16",
) -> Reconstruction:
    """Reconstruct a CT from a frontal and a lateral X-ray, or other views; the same seed gives the same CT.

    ckpt: a run folder, a checkpoint file, a model folder, or a model of ``load_model``, which saves loading it again.
    frontal, lateral: files (.npy line integrals, PNG, TIFF, JPEG, NIfTI, MHA, NRRD, DICOM), or arrays or tensors
    [rows, cols] with row 0 most inferior, columns toward the patient's left (frontal) or posterior (lateral), bone
    bright; others: of other ``dataset.views``, by degrees. All must show the field of view of the training.
    line_integrals, pixel_pitch: of arrays: line integrals of attenuation (dimensionless), else grey levels; (row, col)
    mm of pixels. head_up: row 0 shows the head; None: it does in pictures and DICOM, not in arrays and .npy.
    sampler: another one, such as ``Ddim(20)``, or settings of the run's own, such as ``{"num_inference_steps": 20}``.
    perturbation: z of Eq. 5, ``random`` or ``zero``. output: of a method that has them, ``mean``, ``sample`` or
    ``ensemble`` (of ``num_samples``). blend: between the mean (0) and the sample or ensemble (1). None: as configured.
    consistency: steps that move each estimate of the CT toward X-rays with camera.json beside them; None or 0: none.
    uncertainty: draw ``num_samples`` (None: the model's own number, or 8) CTs more, for ``Reconstruction.uncertainty``.
    spacing: mm a voxel, one number or (x, y, z); None: as the training data. origin: (x, y, z) mm LPS of the first
    voxel; None: from the camera.json beside the files, else centred at 0.
    weights: "ema" (default) or "raw". device: "auto" (default), "cpu", "cuda" or "cuda:N". precision: "bf16" or "fp32".

    Raises UserError, one line, for a checkpoint or X-ray that cannot be used.
    """
    # Read everything that is cheap before the checkpoint is loaded, so that a wrong file name costs no time.
    kinds = ((Precision, precision, "precision"), (Weights | None, weights, "weights"), (Seed, seed, "seed"))
    for kind, value, key in (*kinds, (Whole | None, consistency, "consistency")):
        convert(kind, value, key)
    first_voxel = convert(Three | None, _plain_numbers(origin), "origin")
    views = _read_views(_by_view(frontal, lateral, others), line_integrals, _pitch(pixel_pitch), head_up)

    # Load the model, and check X-rays and settings against it.
    run, weights = _loaded(ckpt, device, weights)
    given = _model_inputs(run, views, spacing, first_voxel)
    settings = {"perturbation": perturbation, "output": output, "blend": blend, "num_samples": num_samples}
    correction = Consistency.wanted(consistency)
    sampling = run.sampling(sampler or {}, uncertainty=uncertainty, consistency=correction, **settings)
    draws = run.draws(sampler or {}, num_samples, perturbation, seed, precision, warn=False) if uncertainty else None
    hu, made = _sample(run, given.seen, seed, precision, _bound(sampling, run.cfg.dataset, views.cameras, given))
    record = _record(run, weights, views) | {"seed": seed, "sampler": sampling_record(sampling), **given.grid, **made}
    maps, about = ({}, {}) if draws is None else _uncertainty(run, draws, given)
    return Reconstruction(hu, given.grid["spacing"], given.grid["origin"], given.xrays, record | about, maps)


def prepare_xrays(
    images: Mapping[str, XrayImage], size: int, normalization: str
) -> dict[str, Float[Tensor, "1 1 rows cols"]]:
    """Radiographs as the model wants them: [1, 1, size, size] in [-1, 1].

    Raises UserError where a model that was trained on absolute line integrals gets grey levels.
    """
    for image in images.values():
        if normalization == "fixed" and not image.is_line_integral:
            raise UserError(
                f"{image.meta['path']}: grey levels, but this model was trained on absolute line integrals "
                "(xray_normalization=fixed); give a .npy of line integrals, or a model trained with max"
            )
    fitted = {view: torch.from_numpy(fit_xray(image, size, size).values) for view, image in images.items()}
    return {view: normalize_xray(values, normalization)[None, None] for view, values in fitted.items()}


def check_cameras(cameras: Mapping[str, CameraFile], size: int, spacing: list[float], dataset: DictConfig) -> list[str]:
    """Notes on cameras that differ from training; UserError where the X-rays show another cube than the model makes."""
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
        elif differences := geometry_differs(known, geometry):
            notes.append(f"{known.path}: camera {known.camera}, but the model was trained on {differences}")
        if known.moved:
            notes.append(f"{known.path}: the patient was turned or shifted, so the CT will not lie on the scan")
    return list(dict.fromkeys(notes))


def model_grid(dataset: DictConfig) -> tuple[int, list[float]]:
    """Voxels a side and spacing (x, y, z) in mm of the CTs of a model that was trained on ``dataset``.

    From the prepared folder where it is at hand, else from the settings that it was made with.
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


@dataclass(frozen=True)
class _Views:
    """X-rays, the SHA-256 of their files or arrays, and the camera.json beside them, each by view."""

    images: dict[str, XrayImage]
    hashes: dict[str, str]
    cameras: dict[str, CameraFile]


def _by_view(
    frontal: XrayInput | None, lateral: XrayInput | None, others: Mapping[float | int, XrayInput] | None
) -> dict[str, XrayInput]:
    named = {view: given for view, given in zip(VIEWS, (frontal, lateral), strict=True) if given is not None}
    return named | (at_angles(others, "others") if others else {})


def _read_views(
    inputs: Mapping[str, XrayInput], line_integrals: bool, pitch: tuple[float, float] | None, head_up: bool | None
) -> _Views:
    """Read both views. Raises UserError where they are one image."""
    images, hashes = {}, {}
    for view, given in inputs.items():
        if isinstance(given, str | Path):
            declared = view if view in VIEWS else None
            images[view], hashes[view] = read_xray(given, head_up, declared), sha256_of(Path(given))
            continue
        values = given.detach().cpu() if isinstance(given, Tensor) else given
        values = np.asarray(values.float() if isinstance(values, Tensor) and values.is_floating_point() else values)
        images[view] = xray_from_array(
            values, f"{view} X-ray", line_integrals=line_integrals, pixel_pitch=pitch, head_up=bool(head_up)
        )
        hashes[view] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    for (one, image), (_, same) in itertools.combinations(images.items(), 2):
        if np.array_equal(image.values, same.values):
            path = image.meta["path"]
            raise UserError(f"{same.meta['path']}: the same image as {one}={path}; give the other view")
    cameras = read_camera_files({view: Path(x) for view, x in inputs.items() if isinstance(x, str | Path)})
    return _Views(images, hashes, cameras)


@dataclass(frozen=True)
class _ModelInputs:
    """X-rays as a model sees them, and the CT's grid, see `_grid`. seen: ``xrays`` and, where known, their camera."""

    xrays: dict[str, Tensor]
    seen: dict[str, Tensor]
    camera: Camera | None
    grid: dict[str, Any]


def _model_inputs(run: load.LoadedRun, views: _Views, spacing: Any, origin: Sequence[float] | None) -> _ModelInputs:
    """UserError unless the X-rays are those that the model takes."""
    run.reconstructor.check_views(views.images)
    dataset = run.cfg.dataset
    grid = _grid(dataset, views.cameras, spacing, None if origin is None else list(origin), len(views.images))
    grid["notes"] = [*(note for image in views.images.values() for note in image.meta.get("notes", ())), *grid["notes"]]
    if len(views.images) == 1:
        grid["notes"].append(f"from one X-ray ({next(iter(views.images))}): {_ONE_VIEW}")
    xrays = prepare_xrays(views.images, grid["size"], dataset.xray_normalization)
    camera = _camera(dataset, views.cameras, grid)
    side = grid["size"] * grid["spacing"][0]
    seen = xrays | ({} if camera is None else {"camera": torch.tensor([camera.panel_map(side)])})
    return _ModelInputs(xrays, seen, camera, grid)


def _bound(
    sampling: Mapping[str, Any], dataset: DictConfig, cameras: Mapping[str, CameraFile], given: _ModelInputs
) -> dict[str, Any]:
    """``sampling`` with its consistency, if any, bound to these X-rays."""
    if "consistency" not in sampling:
        return dict(sampling)
    window, grid = tuple(dataset.window), (given.grid["size"], given.grid["spacing"][0])
    wanted = sampling["consistency"]
    correct = wanted.for_files(cameras, given.xrays, dataset.xray_normalization, window, *grid)
    return {**sampling, "consistency": correct}


def _loaded(ckpt: str | Path | Reconstructor, device: str | None, weights: str | None) -> tuple[load.LoadedRun, str]:
    """The run of a path or of a loaded model, and which weights it has."""
    if isinstance(ckpt, str | Path):
        weights = weights or "ema"
        return load.load_run(ckpt, device or "auto", weights), weights
    if "loaded_from" not in vars(ckpt):
        raise UserError("ckpt: a model without its run; give a run folder or a model of load_model")
    for name, value in (("device", device), ("weights", weights)):
        if value is not None:
            raise UserError(f"{name}={value}: no effect on a loaded model; give it to load_model")
    return vars(ckpt)["loaded_from"]


def _sample(
    run: load.LoadedRun, xrays: Mapping[str, Tensor], seed: int, precision: str, sampling: Mapping[str, Any]
) -> tuple[Int16[np.ndarray, "d h w"], dict[str, Any]]:
    """The model's volume in HU, its precision and the seconds that it took. UserError where it is not finite."""
    # The generator stays on the CPU, so that a seed gives the same noise on every device.
    generator = torch.Generator().manual_seed(seed)
    device = _device(run.reconstructor)
    start = time.perf_counter()
    with torch.inference_mode(), autocast(precision, device):
        volume = run.reconstructor.reconstruct(on_device(xrays, device), generator=generator, **sampling)
    volume = volume[0, 0].float().cpu()
    if not torch.isfinite(volume).all():
        raise UserError(f"{run.path}: the reconstruction holds NaN or infinite values; use another checkpoint")
    hu = to_hu(volume[None], tuple(run.cfg.dataset.window))
    return hu, {"precision": effective(precision, device), "seconds": round(time.perf_counter() - start, 3)}


def _uncertainty(
    run: load.LoadedRun, draws: "Draws", given: _ModelInputs
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps by name, and their entries of ``reconstruct.json``."""
    from diffux2ct.evaluation.uncertainty.maps import uncertainty_maps

    calibration, note = run.calibration(draws)
    window, step = tuple(run.cfg.dataset.window), triple(given.grid["spacing"])
    maps = uncertainty_maps(run.reconstructor, given.seen, draws, window, given.camera, step, calibration)
    notes = [*given.grid["notes"], *filter(None, [note])]
    return maps, {"uncertainty": draws.about(calibration, note), "notes": notes}


def _trained_camera(dataset: DictConfig) -> tuple[str | None, Mapping[str, Any] | None]:
    """Preset and geometry of the camera that a model was trained on; the geometry is None where neither the prepared
    folder nor a model folder gives it."""
    if dataset.get("camera"):  # of a model folder
        camera = plain(dataset.camera)
        return camera.get("preset"), camera.get("geometry")
    if (Path(dataset.root) / "dataset.json").is_file():
        description = read_description(dataset.root)
        return description.get("preset"), description.get("camera")
    made = dataset.get("generate") or dataset.get("prepare") or {}
    return made.get("camera"), None


def _camera(dataset: DictConfig, cameras: Mapping[str, CameraFile], grid: Mapping[str, Any]) -> Camera | None:
    """The X-rays' camera: of camera.json, else that of the training; None where unknown."""
    preset, trained = _trained_camera(dataset)
    for geometry in (*(known.geometry for known in cameras.values()), trained or {}):
        with suppress(UserError):  # an older file may declare a part of it
            return Camera.from_dict(geometry)
    with suppress(UserError):
        return camera_preset(preset or "", grid["size"], grid["spacing"][0])
    return None


def _device(model: Reconstructor) -> torch.device:
    return next(model.parameters()).device


def _pitch(given: Any) -> tuple[float, float] | None:
    """mm between pixels as (row, col), from one number or two."""
    pitch = convert(Positive | tuple[Positive, Positive] | None, _plain_numbers(given), "pixel_pitch")
    return (pitch, pitch) if isinstance(pitch, float) else pitch


def _plain_numbers(value: Any) -> Any:
    """An array or a sequence of numbers as plain floats; anything else as it is."""
    try:
        return value if value is None else np.asarray(value, dtype=float).tolist()
    except (TypeError, ValueError):
        return value


def _grid(
    dataset: DictConfig, cameras: Mapping[str, CameraFile], spacing: Any, given: list[float] | None, count: int
) -> dict[str, Any]:
    """Size, spacing and position of the CT of ``count`` X-rays, and notes on cameras, for ``reconstruct.json``."""
    size, steps = model_grid(dataset) if spacing is None else (int(dataset.size), list(spacing_xyz(spacing)))
    notes = check_cameras(cameras, size, steps, dataset)
    origin, source = place(cameras, size, steps, given, count)
    return {"size": size, "spacing": steps, "origin": origin, "origin_source": source, "notes": notes}


def _record(run: load.LoadedRun, weights: str, views: _Views) -> dict[str, Any]:
    """The model and the X-rays of a reconstruction, for ``reconstruct.json``."""
    dataset = run.cfg.dataset
    return {
        "diffux2ct": __version__,
        "checkpoint": {"path": str(run.path), "sha256": sha256_of(run.path), "step": run.step},
        "run": run.cfg.name,
        "weights": weights,
        "xrays": {
            view: image.meta
            | {
                "sha256": views.hashes[view],
                "shape": list(image.values.shape),
                "pixel_pitch": list(image.pixel_pitch) if image.pixel_pitch else None,
                "line_integrals": image.is_line_integral,
            }
            for view, image in views.images.items()
        },
        "xray_normalization": dataset.xray_normalization,
        "window": list(dataset.window),
        "device": str(_device(run.reconstructor)),
    }


def _xray_tiles(xrays: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {view: slices.grey(slices.display_xray(xrays[view][0, 0].numpy()), (-1.0, 1.0)) for view in xrays}
