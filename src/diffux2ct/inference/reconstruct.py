"""X-rays of a patient to a CT: the command ``reconstruct.py`` and ``diffux2ct.reconstruct`` both call this."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int16
from omegaconf import DictConfig
from torch import Tensor

from diffux2ct import __version__
from diffux2ct.arguments import Precision, Seed, Three, Weights, Whole, convert
from diffux2ct.data.io.camera_file import CameraFile
from diffux2ct.data.io.ct_image import triple
from diffux2ct.diffusion.consistency import Consistency
from diffux2ct.diffusion.samplers.sampling import Sampler, sampling_record
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import sha256_of
from diffux2ct.inference.inputs import (
    ModelInputs,
    Views,
    XrayInput,
    by_view,
    model_inputs,
    pitch_of,
    plain_numbers,
    read_views,
)
from diffux2ct.inference.reconstruction import Reconstruction
from diffux2ct.intensity import to_hu
from diffux2ct.load import LoadedRun, load_run
from diffux2ct.reconstructors.base import Reconstructor, on_device
from diffux2ct.reconstructors.precision import autocast, effective

if TYPE_CHECKING:
    from diffux2ct.evaluation.uncertainty.spread import Draws


def load_model(ckpt: str | Path, device: str = "auto", weights: str = "ema") -> Reconstructor:
    """The trained model of a run or checkpoint, which `reconstruct` takes in place of the path."""
    convert(Weights, weights, "weights")
    run = load_run(ckpt, device, weights)
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
    for kind, value, key in (*kinds, (Whole, consistency or 0, "consistency")):
        convert(kind, value, key)
    first_voxel = convert(Three | None, plain_numbers(origin), "origin")
    views = read_views(by_view(frontal, lateral, others), line_integrals, pitch_of(pixel_pitch), head_up)

    # Load the model, and check X-rays and settings against it.
    run, weights = _loaded(ckpt, device, weights)
    given = model_inputs(run, views, spacing, first_voxel)
    settings = {"perturbation": perturbation, "output": output, "blend": blend, "num_samples": num_samples}
    correction = Consistency.wanted(consistency)
    sampling = run.sampling(sampler or {}, uncertainty=uncertainty, consistency=correction, **settings)
    draws = run.draws(sampler or {}, num_samples, perturbation, seed, precision, warn=False) if uncertainty else None
    hu, made = _sample(run, given.seen, seed, precision, _bound(sampling, run.cfg.dataset, views.cameras, given))
    record = _record(run, weights, views) | {"seed": seed, "sampler": sampling_record(sampling), **given.grid, **made}
    maps, about = ({}, {}) if draws is None else _uncertainty(run, draws, given)
    return Reconstruction(hu, given.grid["spacing"], given.grid["origin"], given.xrays, record | about, maps)


def _bound(
    sampling: Mapping[str, Any], dataset: DictConfig, cameras: Mapping[str, CameraFile], given: ModelInputs
) -> dict[str, Any]:
    """``sampling`` with its consistency, if any, bound to these X-rays."""
    if "consistency" not in sampling:
        return dict(sampling)
    window, grid = tuple(dataset.window), (given.grid["size"], given.grid["spacing"][0])
    wanted = sampling["consistency"]
    correct = wanted.for_files(cameras, given.xrays, dataset.xray_normalization, window, *grid)
    return {**sampling, "consistency": correct}


def _loaded(ckpt: str | Path | Reconstructor, device: str | None, weights: str | None) -> tuple[LoadedRun, str]:
    """The run of a path or of a loaded model, and which weights it has."""
    if isinstance(ckpt, str | Path):
        weights = weights or "ema"
        return load_run(ckpt, device or "auto", weights), weights
    if "loaded_from" not in vars(ckpt):
        raise UserError("ckpt: a model without its run; give a run folder or a model of load_model")
    for name, value in (("device", device), ("weights", weights)):
        if value is not None:
            raise UserError(f"{name}={value}: no effect on a loaded model; give it to load_model")
    return vars(ckpt)["loaded_from"]


def _sample(
    run: LoadedRun, xrays: Mapping[str, Tensor], seed: int, precision: str, sampling: Mapping[str, Any]
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


def _uncertainty(run: LoadedRun, draws: "Draws", given: ModelInputs) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps by name, and their entries of ``reconstruct.json``."""
    from diffux2ct.evaluation.uncertainty.maps import uncertainty_maps

    calibration, note = run.calibration(draws)
    window, step = tuple(run.cfg.dataset.window), triple(given.grid["spacing"])
    maps = uncertainty_maps(run.reconstructor, given.seen, draws, window, given.camera, step, calibration)
    notes = [*given.grid["notes"], *filter(None, [note])]
    return maps, {"uncertainty": draws.about(calibration, note), "notes": notes}


def _record(run: LoadedRun, weights: str, views: Views) -> dict[str, Any]:
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


def _device(model: Reconstructor) -> torch.device:
    return next(model.parameters()).device
