"""``prepare_dataset.py`` and ``export_x2ct.py``: raw CT scans to a prepared folder, and that to X2CT-GAN's files."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from diffux2ct.arguments import Count, Positive, Range, Seed, Share, Size, Whole, Window, read
from diffux2ct.cli.drr import Jitter
from diffux2ct.cli.hydra_app import hydra_app, warn_idle
from diffux2ct.errors import UserError

if TYPE_CHECKING:
    from diffux2ct.data.preparation.report import PrepareReport

# What reads scans is imported where it is used: --help prints at once, and so do the processes that import this
# module only because they were started by the command.


@dataclass(frozen=True)
class SplitFile:
    """Keys of ``dataset.prepare.split``, which ``data.prepared.split`` checks."""

    val: Any
    test: Any
    of: Any = None
    file: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """Keys of ``configs/dataset/prepare``."""

    source: str
    origins: list[str] | None
    grid: Literal["centre", "x2ct", "lumbar", "stored"]
    size: Annotated[int, Range(8, 2048)]
    spacing: Positive
    window: Window
    remove_couch: bool
    instrument: Mapping[str, Any] | None
    camera: Literal["lumbar", "x2ct", "parallel"]
    projector: Literal["joseph", "siddon", "trilinear"]
    attenuation: Literal["plastimatch", "water", "two_material"]
    pose_jitter: Annotated[Any, Jitter] | None
    crops: Whole
    test_crops: Whole | None
    rescale: tuple[float, float] | Path | None
    labels: str | None
    split: Annotated[Any, SplitFile]
    seed: Seed
    min_filled: Share = 0.0
    xrays: Literal["stored", "rendered"] = "stored"


@dataclass(frozen=True)
class Dataset:
    """Keys of ``configs/dataset``."""

    name: str
    size: Size
    window: Window
    xray_normalization: Literal["max", "fixed"]
    max_steps: Count
    cache: bool
    root: Path = Path()
    labels: list[str] | None = None
    prepare: Annotated[Any, Recipe] | None = None
    generate: Mapping[str, Any] | None = None
    randomize: Mapping[str, Any] | None = None
    augment: Any = None
    views: list[Annotated[float, Range(0, 360)]] = field(default_factory=lambda: [0.0, 90.0])


@dataclass(frozen=True)
class Preparation:
    """Keys of ``configs/prepare.yaml``."""

    dataset: Annotated[Any, Dataset]
    raw: Path
    out: Path | None
    size: Annotated[int, Range(8, 2048)] | None
    spacing: Positive | None
    crops: Whole | None
    workers: Count | None
    strict: bool
    dry_run: bool
    contact_sheet: bool


def run(config: DictConfig) -> None:
    """Prepare ``raw`` and print a report. Raises UserError if nothing, or under strict not all, was usable."""
    from diffux2ct.data.preparation.prepare import prepare, survey
    from diffux2ct.data.preparation.settings import PrepareSettings
    from diffux2ct.viz.contact_sheet import write_contact_sheets

    cfg = read(Preparation, config)
    if "prepare" not in cfg.dataset:
        raise UserError(f"dataset={cfg.dataset.name} is not made from scans; choose folder, lumbarv, lidc_idri, ...")
    values = OmegaConf.to_container(cfg.dataset.prepare, resolve=True)
    recipe = read(Recipe, values, "dataset.prepare.")  # type: ignore[arg-type]
    short = {key: getattr(cfg, key) for key in ("size", "spacing", "crops")}
    short = {key: value for key, value in short.items() if value is not None}
    recipe = replace(recipe, **short)
    warn_idle(idle_settings(cfg, recipe))
    request = dict(vars(recipe))
    settings = PrepareSettings(**{field.name: request.pop(field.name) for field in fields(PrepareSettings)})
    arguments = {**request, "settings": settings, "workers": cfg.workers, "asked": short.keys() & {"size", "spacing"}}
    if cfg.dry_run:
        rows, report = survey(cfg.raw, **arguments)
        _print_survey(rows, report)
    else:
        if cfg.out is None and OmegaConf.is_missing(cfg.dataset, "root"):
            raise UserError("out is not given; add out=DIR, the folder to write")
        out = Path(cfg.dataset.root if cfg.out is None else cfg.out)
        report = prepare(cfg.dataset.name, cfg.raw, out, **arguments)
        sheets = write_contact_sheets(out) if cfg.contact_sheet else []
        _print(report, out, sheets)
    if cfg.strict and report.bad:
        raise UserError(f"{len(report.bad)} scans could not be used (listed above), and strict=true")


def idle_settings(cfg: Preparation, recipe: Recipe) -> dict[str, str]:
    """Settings without effect on the preparation of this source, and why."""
    source = f"dataset.prepare.source={recipe.source}"
    idle = {f"dataset.{field.name}": "it is of training" for field in fields(Dataset)}
    idle = {key: why for key, why in idle.items() if key not in ("dataset.name", "dataset.root", "dataset.prepare")}
    if cfg.out is not None:
        idle["dataset.root"] = f"out={cfg.out} is given"
    if recipe.source != "x2ct":
        idle["dataset.prepare.xrays"] = f"{source} holds no X-rays"
    if recipe.source in ("ctspine1k", "ctpelvic1k", "lidc_idri", "x2ct"):
        idle["dataset.prepare.labels"] = f"{source} has labels of its own or none"
    for key in ("size", "spacing", "crops"):
        if getattr(cfg, key) is not None:
            idle[f"dataset.prepare.{key}"] = f"{key}={getattr(cfg, key)} is given"
    return idle | ({"contact_sheet": "dry_run=true"} if cfg.dry_run else {})


def _print(report: "PrepareReport", out: Path, sheets: list[Path]) -> None:
    from diffux2ct.data.preparation.report import summary_table

    _print_notes(report)
    print(summary_table(report.summary, listed=False))
    total = sum(map(len, report.split.values()))
    print(
        f"{out}: {total} cases ({_counts(report.split)}); {report.written} written in {report.seconds:.0f} s, "
        f"{report.found} were there; {len(report.bad) + len(report.not_used)} left out"
    )
    if sheets:
        print(f"look at {', '.join(map(str, sheets[:3]))}{', ...' if len(sheets) > 3 else ''}")


def _counts(split: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{part} {len(ids)}" for part, ids in split.items())


def _print_survey(rows: list[dict[str, Any]], report: "PrepareReport") -> None:
    from diffux2ct.data.preparation.report import by_reason

    _print_notes(report)
    print(f"{'case':32} {'split':5} {'size':>15} {'spacing, mm':>17} {'axes':4} {'labels':6} source")
    for row in rows:
        size, spacing = "x".join(map(str, row["size"])), " ".join(f"{s:.4g}" for s in row["spacing"])
        labels = "yes" if row["labels"] else "no"
        case = row["case"] if row["num_cases"] == 1 else f"{row['case']} ({row['num_cases']} crops)"
        print(f"{case:32} {row['split']:5} {size:>15} {spacing:>17} {row['orientation']:4} {labels:6} {row['source']}")
    left_out = [*report.bad, *report.not_used]
    for reason, count in by_reason(left_out).items():
        print(f"{count:5} left out: {reason}")
    counts = _counts(report.split)
    print(f"dry run: {len(rows)} scans would be used (cases: {counts}), {len(left_out)} left out; nothing was written")


def _print_notes(report: "PrepareReport") -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for source, reason in report.bad:
        print(f"left out: {source}: {reason}", file=sys.stderr)
    for source, reason in report.not_used:
        print(f"not used: {source}: {reason}", file=sys.stderr)


@dataclass(frozen=True)
class Export:
    """Keys of ``configs/export_x2ct.yaml``."""

    data: Path
    out: Path
    views: Literal["folder", "x2ct"]


def run_export(config: DictConfig) -> None:
    """Write the prepared folder ``data`` as X2CT-GAN's files. Raises UserError, see ``export_x2ct``."""
    from diffux2ct.data.prepared.export_x2ct import export_x2ct

    cfg = read(Export, config)
    start = time.monotonic()
    split, notes = export_x2ct(cfg.data, cfg.out, views=cfg.views)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    total = sum(map(len, split.values()))
    print(f"{cfg.out}: {total} cases ({_counts(split)}) written in {time.monotonic() - start:.0f} s")


def export_main() -> None:
    """The command ``export_x2ct``."""
    hydra_app("export_x2ct", run_export, Export)


def main() -> None:
    """The command; ``--dry-run`` is short for ``dry_run=true``."""
    sys.argv[1:] = ["dry_run=true" if argument == "--dry-run" else argument for argument in sys.argv[1:]]
    hydra_app("prepare", run, Preparation)
