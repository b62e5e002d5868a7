"""Score any reconstructor on a split of a prepared dataset; write numbers, volumes and pictures."""

import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffux2ct.arguments import check_choice
from diffux2ct.diffusion.samplers.sampling import sampling_record
from diffux2ct.errors import UserError
from diffux2ct.evaluation.contracts import EvaluationDataset, SupportsReconstruct
from diffux2ct.evaluation.fidelity.xray_consistency import CaseXrays, ViewResidual
from diffux2ct.evaluation.metric import RECORDS_KEY, find_metric
from diffux2ct.evaluation.metric_set import DEFAULT_NAMES, MetricSet
from diffux2ct.evaluation.report.report import ReportCase, choose_cases, floor_panels, write_report
from diffux2ct.evaluation.results import summarize
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.coverage import Uncertainty
from diffux2ct.evaluation.uncertainty.fit import spread_of_case
from diffux2ct.files.atomic import replaced_folder
from diffux2ct.intensity import normalize_xray, to_hu
from diffux2ct.reconstructors.base import on_device, xrays_of
from diffux2ct.reconstructors.precision import autocast, effective
from diffux2ct.seeding import CPU, seeded_generator
from diffux2ct.types import VIEWS
from diffux2ct.xray.pose import is_view

XRAY_SOURCES = ("paired", "shuffled", "swapped")

_OWN_KEYS = {
    *("num_cases", "num_scored", "floor", "seconds_per_volume", "sampling", "seed", "xray_source", "batch_size"),
    *("precision", "unavailable", "of_the_set", "protocol", "intervals", "bootstrap", "left_out"),
    *("uncertainty", RECORDS_KEY),
}


def evaluate(
    reconstructor: SupportsReconstruct,
    dataset: EvaluationDataset,
    out_dir: str | Path,
    *,
    sampling: Mapping[str, Any],
    mean_volume: Float[Tensor, "1 d h w"],
    metrics: MetricSet | Sequence[str] = DEFAULT_NAMES,
    seed: int = 0,
    context: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    num_report_cases: int = 3,
    xray_source: str = "paired",
    batch_size: int = 1,
    precision: str = "fp32",
    uncertainty: Uncertainty | None = None,
) -> dict[str, Any]:
    """Reconstruct every case, score it beside the mean training volume, and write ``out_dir``.

    ``out_dir`` gets metrics.json (means over the cases that have a value, under ``floor`` the same metrics of
    ``mean_volume``, under ``unavailable`` the metrics that could not be computed and why, under ``intervals`` see
    `results.summarize`), per_case.csv, reconstructions/<case_id>.nii.gz (int16 HU at the case's true spacing and
    origin) and a self-contained report.html. With ``uncertainty`` the reconstructor also draws several CTs for each
    case, whose scores join the others; half_width/<case_id>.nii.gz holds `Uncertainty.half_width` in whole HU. All is
    written beside it first and moved at the end, so an interrupted evaluation leaves a former one untouched. Returns
    the content of metrics.json.

    sampling: keyword arguments of ``reconstructor.reconstruct``. mean_volume: mean of the training volumes in [-1, 1],
    the output of a method that sees no X-ray. metrics: a `MetricSet`; or names of functions of two volumes, see
    `metric.function_keys`. seed: with a case's index in the dataset it seeds the generator of that case; with
    ``batch_size`` 1 a case's result therefore does not depend on the others, while a larger batch shares its first
    case's. context: further entries for metrics.json and the report's header: run, dataset, split, sampler, ...
    precision: "bf16" runs the reconstructor under bf16 autocast, the metrics never. xray_source: "paired"; or, as
    control experiments, "shuffled" (each case gets the X-rays of another patient's case) or "swapped" (frontal and
    lateral exchanged).

    UserError: an empty split, an unknown metric or X-ray source, a reconstruction that is not finite, or an ``out_dir``
    that holds something else than an evaluation.
    """
    out_dir = Path(out_dir)
    metrics = metrics if isinstance(metrics, MetricSet) else MetricSet.of_functions(metrics)
    _check(dataset, out_dir, xray_source, context or {})
    if metrics.planted and xray_source != "paired":
        raise UserError(f"xray_source={xray_source}: planted objects show in a case's own X-rays; use paired")
    job = _Job(reconstructor, dataset, dict(sampling), seed, xray_source, batch_size, device, precision)
    with _eval_mode(reconstructor), replaced_folder(out_dir) as folder:
        rows = _score_cases(job, metrics, mean_volume, folder, uncertainty)
        spread = {} if uncertainty is None else {"uncertainty": uncertainty.about()}
        summary = summarize(rows, metrics) | job.settings() | metrics.context | dict(context or {}) | spread
        _write_tables(folder, summary, rows)
        chosen = [
            (label, partial(_report_case, dataset, index, folder, xray_source))
            for label, index in choose_cases(rows, num_report_cases)
        ]
        floor = floor_panels(to_hu(mean_volume, dataset.window))
        shown = [key for key in summary if key in summary["floor"] or any(key in row for row in rows)]
        write_report(
            folder / "report.html", summary, rows, shown, chosen, floor, title=out_dir.name, planted=metrics.planted
        )
    return summary


@dataclass(frozen=True)
class _Job:
    """The method, its cases and its settings."""

    reconstructor: SupportsReconstruct
    dataset: EvaluationDataset
    sampling: dict[str, Any]
    seed: int
    xray_source: str
    batch_size: int
    device: torch.device | str
    precision: str

    def settings(self) -> dict[str, Any]:
        """For metrics.json."""
        own = {key: getattr(self, key) for key in ("seed", "xray_source", "batch_size")}
        precision = effective(self.precision, self.device)
        return {"sampling": sampling_record(self.sampling), **own, "precision": precision}

    def reconstruct(self, indices: Sequence[int]) -> tuple[Tensor, float]:
        """Volumes [B, 1, D, H, W] on the CPU, and seconds per volume (transfers included)."""
        xrays = _xrays(self.dataset, indices, self.xray_source)
        start = time.perf_counter()
        volumes = self._volumes(xrays, indices, self.precision)
        return volumes, (time.perf_counter() - start) / len(volumes)

    def reconstruct_pair(self, index: int, pair: Mapping[str, Tensor]) -> Tensor:
        """The volume [1, D, H, W] from line integrals in the place of a case's own, with the case's random draws.

        In fp32: rounding to bf16 is of the size of a faint object.
        """
        sample, mode = self.dataset[index], getattr(self.dataset, "xray_normalization", "max")
        xrays = {view: normalize_xray(image, mode)[None, None] for view, image in pair.items()}
        xrays |= {"camera": sample["camera"][None]} if "camera" in sample else {}
        volume = self._volumes(xrays, [index], "fp32")[0]
        return _checked(volume, sample["volume"], self.dataset.cases[index].case_id)

    def _volumes(self, xrays: Mapping[str, Tensor], indices: Sequence[int], precision: str) -> Tensor:
        settings, xrays = dict(self.sampling), on_device(xrays, self.device)
        if (consistency := settings.get("consistency")) is not None:
            shown = [_shown(self.dataset, index, self.xray_source) for index in indices]
            settings["consistency"] = consistency.for_cases(self.dataset, shown, xrays)
        generator = seeded_generator(CPU, self.seed, indices[0])  # on the CPU: a seed gives the same noise everywhere
        with torch.inference_mode(), autocast(precision, self.device):
            volumes = self.reconstructor.reconstruct(xrays, generator=generator, **settings)
            return volumes.float().cpu()


def _score_cases(
    job: _Job, metrics: MetricSet, mean_volume: Tensor, folder: Path, uncertainty: Uncertainty | None
) -> list[dict[str, Any]]:
    """A row a case; its reconstruction is written into ``folder``."""
    dataset, rows = job.dataset, []
    effective(job.precision, job.device)  # its note comes before the bar
    progress = tqdm(total=len(dataset), desc="evaluate", unit="case", smoothing=0)
    for first in range(0, len(dataset), job.batch_size):
        indices = range(first, min(first + job.batch_size, len(dataset)))
        volumes, seconds = job.reconstruct(indices)
        for place, index in enumerate(indices):
            case, sample = dataset.cases[index], dataset[index]
            truth = sample["volume"]
            volume = _checked(volumes[place], truth, case.case_id)
            scored = ScoredCase.of(case, truth, dataset.window, [*filter(is_view, sample)])
            row = {"case_id": case.case_id, "patient": case.patient} | metrics.score(scored, volume, mean_volume)
            row |= metrics.plant(scored, partial(job.reconstruct_pair, index))
            if uncertainty is not None:
                xrays = _xrays(dataset, [index], job.xray_source)
                spread = spread_of_case(job.reconstructor, scored, xrays, uncertainty.draws)
                row |= uncertainty.score(spread)
                _write_volume(folder / "half_width", uncertainty.half_width(spread), case)
            rows.append(row | {"seconds": seconds})
            _write_volume(folder / "reconstructions", to_hu(volume, dataset.window), case)
        progress.update(len(indices))
        progress.set_postfix({k: f"{rows[-1][k]:.2f}" for k in ("psnr3d", "ssim3d") if k in rows[-1]})
    progress.close()
    return rows


def _check(dataset: EvaluationDataset, out_dir: Path, xray_source: str, context: Mapping[str, Any]) -> None:
    if len(dataset) == 0:
        raise UserError("dataset: the split to evaluate is empty; choose another split or prepare more cases")
    check_choice("xray_source", xray_source, XRAY_SOURCES)
    if xray_source == "shuffled" and len({case.patient for case in dataset.cases}) < 2:
        raise UserError("xray_source: shuffling needs at least two patients, and the split holds one")
    if out_dir.exists() and not (out_dir / "metrics.json").exists() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir}: holds something else than an evaluation; choose another folder or empty it")
    clash = sorted(key for key in context if key in _OWN_KEYS or find_metric(key))
    if clash:
        raise ValueError(f"context may not redefine {', '.join(clash)}")


def _xrays(dataset: EvaluationDataset, indices: Sequence[int], source: str) -> dict[str, Tensor]:
    samples = [dataset[_shown(dataset, index, source)] for index in indices]
    xrays = {key: torch.stack([sample[key] for sample in samples]) for key in xrays_of(samples[0])}
    if source == "swapped":
        if not xrays.keys() >= set(VIEWS):
            raise UserError("xray_source=swapped: this model does not take both frontal and lateral; use shuffled")
        if xrays["frontal"].shape != xrays["lateral"].shape:
            raise UserError("xray_source: frontal and lateral differ in size here, so they cannot be swapped")
        xrays = xrays | {"frontal": xrays["lateral"], "lateral": xrays["frontal"]}
    return xrays


def _shown(dataset: EvaluationDataset, index: int, source: str) -> int:
    """The case whose X-rays are given in a case's place."""
    return _other(dataset, index) if source == "shuffled" else index


def _other(dataset: EvaluationDataset, index: int) -> int:
    """The first case from half-way round the dataset whose patient is not this one's.

    Half-way round, because cases of one patient stand together and each should get a partner of its own.
    """
    n = len(dataset)
    turn = [(index + n // 2 + k) % n for k in range(n)]
    return next(i for i in turn if dataset.cases[i].patient != dataset.cases[index].patient)


def _checked(volume: Tensor, truth: Tensor, case_id: str) -> Tensor:
    if volume.shape != truth.shape:
        sizes = f"the reconstruction is {tuple(volume.shape)} and the truth {tuple(truth.shape)}"
        raise UserError(f"{case_id}: {sizes}; evaluate at the size that the model was trained for")
    if not torch.isfinite(volume).all():
        raise UserError(
            f"{case_id}: the reconstruction holds NaN or infinite values; the training has probably diverged,"
            " so use an earlier checkpoint or a smaller learning rate"
        )
    return volume.clamp(-1, 1)


def _write_volume(folder: Path, hu: np.ndarray, case: Any) -> None:
    # SimpleITK is needed here only, and training must work without it.
    from diffux2ct.data.io.volume import write_nifti

    write_nifti(folder / f"{case.case_id}.nii.gz", hu, case.spacing, case.origin)


def _report_case(dataset: EvaluationDataset, index: int, folder: Path, source: str) -> ReportCase:
    """A case for the report, its reconstruction read back, so that a long evaluation keeps no volume alive."""
    from diffux2ct.data.io.volume import read_own_ct

    case = dataset.cases[index]
    truth = to_hu(dataset[index]["volume"], dataset.window)
    made = read_own_ct(folder / "reconstructions" / f"{case.case_id}.nii.gz").hu
    given = _xrays(dataset, [index], source)
    xrays = {view: given[view][0, 0].numpy() for view in filter(is_view, given)}
    again = _reprojections(case, made) if source == "paired" else {}
    width = folder / "half_width" / f"{case.case_id}.nii.gz"
    half_width = read_own_ct(width).hu if width.is_file() else None
    return ReportCase(case.case_id, truth, made, case.spacing, xrays, again, half_width)


def _reprojections(case: Any, hu: np.ndarray) -> Mapping[str, ViewResidual]:
    """The reconstruction through the case's own camera; nothing where that is unknown."""
    try:
        return CaseXrays(case.path, hu.shape[0]).residuals(hu)
    except UserError:
        return {}


def _write_tables(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    # default=str: a sampler setting may be a path or a dtype. NaN would not be JSON, so it is refused.
    text = json.dumps(summary, indent=2, default=str, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "per_case.csv").open("w", newline="", encoding="utf-8") as file:
        # A case without labels has no such columns; None is an empty cell.
        names = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _eval_mode(reconstructor: Any) -> Iterator[None]:
    """Dropout and the like are off inside; no effect on a reconstructor that is not a torch module."""
    was_training = bool(getattr(reconstructor, "training", False))
    if was_training:
        reconstructor.eval()
    try:
        yield
    finally:
        if was_training:
            reconstructor.train()
