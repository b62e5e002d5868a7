"""Score any reconstructor on a split of a prepared dataset; leave numbers, volumes and pictures behind."""

import csv
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffux2ct.errors import UserError
from diffux2ct.evaluation.distortion import METRICS, Metric
from diffux2ct.evaluation.report import CasePanels, case_panels, choose_cases, floor_panels, write_report
from diffux2ct.geometry.hounsfield import denormalize_hu
from diffux2ct.types import VIEWS

XRAY_SOURCES = ("paired", "shuffled", "swapped")

_OWN_KEYS = {"num_cases", "floor", "seconds_per_volume", "sampling", "seed", "xray_source", "batch_size"}


@runtime_checkable
class SupportsReconstruct(Protocol):
    """Anything that maps X-rays to a volume; see `diffux2ct.reconstructors.base.Reconstructor`."""

    def reconstruct(
        self, xrays: Mapping[str, Tensor], *, generator: torch.Generator | None = None, **sampling: Any
    ) -> Tensor:
        """X-rays [B, 1, D, W] and [B, 1, D, H] to a volume [B, 1, D, H, W], all in [-1, 1]."""
        ...


@runtime_checkable
class EvaluationDataset(Protocol):
    """What is needed of a dataset; `diffux2ct.data.dataset.PreparedDataset` is one."""

    @property
    def cases(self) -> Sequence[Any]:
        """With case_id, patient, spacing and origin (x, y, z) in mm."""
        ...

    @property
    def window(self) -> tuple[float, float]:
        """HU that -1 and 1 stand for."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def evaluate(
    reconstructor: SupportsReconstruct,
    dataset: EvaluationDataset,
    out_dir: str | Path,
    *,
    sampling: Mapping[str, Any],
    mean_volume: Float[Tensor, "1 d h w"],
    metrics: Mapping[str, Metric] | Sequence[str] = METRICS,
    seed: int = 0,
    context: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    num_report_cases: int = 3,
    xray_source: str = "paired",
    batch_size: int = 1,
) -> dict[str, Any]:
    """Reconstruct every case, score it beside the mean training volume, and write ``out_dir``.

    ``out_dir`` gets metrics.json (means over cases, and under ``floor`` the same metrics of ``mean_volume``),
    per_case.csv, reconstructions/<case_id>.nii.gz (int16 HU at the case's true spacing and origin) and a
    self-contained report.html. All is written beside it first and moved at the end, so an interrupted
    evaluation leaves a former one untouched.

    Args:
        sampling: keyword arguments of ``reconstructor.reconstruct``.
        mean_volume: mean of the training volumes in [-1, 1], the answer of a method that sees no X-ray.
        metrics: names from `METRICS`, or functions of two volumes [D, H, W] in [-1, 1] by name. Larger is
            better.
        seed: with a case's index in the dataset it seeds the generator of that case. With ``batch_size`` 1 a
            case's result therefore does not depend on the others; a larger batch shares its first case's.
        context: further entries for metrics.json and the report's header: run, dataset, split, sampler, ...
        xray_source: "paired"; or, as control experiments, "shuffled" (each case is given the X-rays of
            another patient's case) or "swapped" (frontal and lateral exchanged).

    Returns:
        What metrics.json holds.

    Raises:
        UserError: an empty split, an unknown metric or X-ray source, a reconstruction that is not finite, or
            an ``out_dir`` that holds something else than an evaluation.
    """
    out_dir = Path(out_dir)
    metrics = _resolve_metrics(metrics)
    settings = {"seed": seed, "xray_source": xray_source, "batch_size": batch_size}
    _check(dataset, out_dir, xray_source, context or {}, metrics)
    rows: list[dict[str, Any]] = []
    panels: list[CasePanels] = []
    with _eval_mode(reconstructor), _replaced_folder(out_dir) as folder:
        progress = tqdm(total=len(dataset), desc="evaluate", unit="case", smoothing=0)
        for first in range(0, len(dataset), batch_size):
            indices = range(first, min(first + batch_size, len(dataset)))
            xrays, generator = _xrays(dataset, indices, xray_source), _generator(seed, first)
            volumes, seconds = _reconstruct(reconstructor, xrays, sampling, generator, device)
            for place, index in enumerate(indices):
                case, truth = dataset.cases[index], dataset[index]["volume"]
                volume = _checked(volumes[place], truth, case.case_id)
                rows.append(_score(volume, truth, mean_volume, metrics, case) | {"seconds": seconds})
                hu = _write_volume(folder, volume, dataset.window, case)
                shown = {view: xrays[view][place, 0].numpy() for view in VIEWS}
                panels.append(case_panels(case.case_id, _hu(truth, dataset.window), hu, shown))
            progress.update(len(indices))
            progress.set_postfix({name: f"{rows[-1][name]:.2f}" for name in metrics})
        progress.close()
        summary = _summarize(rows, metrics, sampling) | settings | dict(context or {})
        _write_tables(folder, summary, rows)
        chosen = choose_cases(rows, panels, num_report_cases)
        floor = floor_panels(_hu(mean_volume, dataset.window))
        write_report(folder / "report.html", summary, rows, list(metrics), chosen, floor, title=out_dir.name)
    return summary


def _resolve_metrics(metrics: Mapping[str, Metric] | Sequence[str]) -> Mapping[str, Metric]:
    if isinstance(metrics, Mapping):
        return metrics
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"metrics: unknown metric {name!r}; choose from {', '.join(METRICS)}")
    return {name: METRICS[name] for name in metrics}


def _check(
    dataset: EvaluationDataset,
    out_dir: Path,
    xray_source: str,
    context: Mapping[str, Any],
    metrics: Mapping[str, Metric],
) -> None:
    if not metrics:
        raise UserError(f"metrics: none named; choose from {', '.join(METRICS)}")
    if len(dataset) == 0:
        raise UserError("dataset: the split to evaluate is empty; choose another split or prepare more cases")
    if xray_source not in XRAY_SOURCES:
        raise UserError(f"xray_source: unknown value {xray_source!r}; choose from {', '.join(XRAY_SOURCES)}")
    if xray_source == "shuffled" and len({case.patient for case in dataset.cases}) < 2:
        raise UserError("xray_source: shuffling needs at least two patients, and the split holds one")
    if out_dir.exists() and not (out_dir / "metrics.json").exists() and any(out_dir.iterdir()):
        raise UserError(
            f"{out_dir}: holds something else than an evaluation; choose another folder or empty it"
        )
    clash = sorted((_OWN_KEYS | set(metrics)) & set(context))
    if clash:
        raise ValueError(f"context may not redefine {', '.join(clash)}")


def _generator(seed: int, index: int) -> torch.Generator:
    """On the CPU, whatever the device computes, so that a seed gives the same noise everywhere."""
    state = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def _xrays(dataset: EvaluationDataset, indices: Sequence[int], source: str) -> dict[str, Tensor]:
    samples = [dataset[_other(dataset, index) if source == "shuffled" else index] for index in indices]
    xrays = {view: torch.stack([sample[view] for sample in samples]) for view in VIEWS}
    if source == "swapped":
        if xrays["frontal"].shape != xrays["lateral"].shape:
            raise UserError("xray_source: frontal and lateral differ in size here, so they cannot be swapped")
        xrays = {"frontal": xrays["lateral"], "lateral": xrays["frontal"]}
    return xrays


def _other(dataset: EvaluationDataset, index: int) -> int:
    """The first case from half-way round the dataset whose patient is not this one's.

    Half-way round, because cases of one patient stand together and each should get a partner of its own.
    """
    n = len(dataset)
    turn = [(index + n // 2 + k) % n for k in range(n)]
    return next(i for i in turn if dataset.cases[i].patient != dataset.cases[index].patient)


def _reconstruct(
    reconstructor: SupportsReconstruct,
    xrays: Mapping[str, Tensor],
    sampling: Mapping[str, Any],
    generator: torch.Generator,
    device: torch.device | str,
) -> tuple[Tensor, float]:
    """Volumes [B, 1, D, H, W] on the CPU, and seconds per volume (transfers included)."""
    start = time.perf_counter()
    with torch.inference_mode():
        on_device = {view: image.to(device) for view, image in xrays.items()}
        volumes = reconstructor.reconstruct(on_device, generator=generator, **sampling).float().cpu()
    return volumes, (time.perf_counter() - start) / len(volumes)


def _checked(volume: Tensor, truth: Tensor, case_id: str) -> Tensor:
    if volume.shape != truth.shape:
        raise UserError(
            f"{case_id}: the reconstruction is {tuple(volume.shape)} and the truth {tuple(truth.shape)};"
            " evaluate at the size that the model was trained for"
        )
    if not torch.isfinite(volume).all():
        raise UserError(
            f"{case_id}: the reconstruction holds NaN or infinite values; the training has probably diverged,"
            " so use an earlier checkpoint or a smaller learning rate"
        )
    return volume.clamp(-1, 1)


def _score(
    volume: Tensor, truth: Tensor, mean: Tensor, metrics: Mapping[str, Metric], case: Any
) -> dict[str, Any]:
    """One row of per_case.csv, from volumes [1, D, H, W] in [-1, 1]."""
    row: dict[str, Any] = {"case_id": case.case_id, "patient": case.patient}
    row |= {name: metric(volume[0], truth[0]) for name, metric in metrics.items()}
    return row | {f"floor_{name}": metric(mean[0], truth[0]) for name, metric in metrics.items()}


def _hu(volume: Tensor, window: tuple[float, float]) -> np.ndarray:
    """[1, D, H, W] in [-1, 1] to whole HU [D, H, W]."""
    hu = denormalize_hu(volume[0].clamp(-1, 1).numpy(), window)
    return np.round(hu).astype(np.int16)


def _write_volume(folder: Path, volume: Tensor, window: tuple[float, float], case: Any) -> np.ndarray:
    # SimpleITK is needed here only, and training must work without it.
    from diffux2ct.data.volume_io import write_nifti

    hu = _hu(volume, window)
    write_nifti(folder / "reconstructions" / f"{case.case_id}.nii.gz", hu, case.spacing, case.origin)
    return hu


def _summarize(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in rows]))

    return {name: mean(name) for name in metrics} | {
        "num_cases": len(rows),
        "floor": {name: mean(f"floor_{name}") for name in metrics},
        "seconds_per_volume": mean("seconds"),
        "sampling": dict(sampling),
    }


def _write_tables(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    # default=str: a sampler setting may be a path or a dtype. NaN would not be JSON, so it is refused.
    text = json.dumps(summary, indent=2, default=str, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "per_case.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _eval_mode(reconstructor: Any) -> Iterator[None]:
    """Dropout and the like off while it lasts; nothing to do for what is not a torch module."""
    was_training = bool(getattr(reconstructor, "training", False))
    if was_training:
        reconstructor.eval()
    try:
        yield
    finally:
        if was_training:
            reconstructor.train()


@contextmanager
def _replaced_folder(final: Path) -> Iterator[Path]:
    """A hidden folder to write into, which takes the place of ``final`` if nothing goes wrong.

    Two renames, because a folder that holds files cannot be replaced in one.
    """
    partial, former = (final.with_name(f".{final.name}.{state}") for state in ("partial", "former"))
    if former.exists() and not final.exists():  # an earlier run was killed between the two renames
        former.rename(final)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "reconstructions").mkdir(parents=True)
        yield partial
        shutil.rmtree(former, ignore_errors=True)
        if final.exists():
            final.rename(former)
        partial.rename(final)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not final.exists():
            former.rename(final)
