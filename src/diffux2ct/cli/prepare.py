"""``prepare_dataset.py`` and ``export_x2ct.py``: raw CT scans to a prepared folder, and that to X2CT-GAN's files."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from diffux2ct.arguments import read
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.errors import UserError

if TYPE_CHECKING:
    from diffux2ct.data.preparation.report import PrepareReport
    from diffux2ct.data.preparation.settings import PrepareSettings

# What reads scans is imported where it is used: --help answers at once, and so do the processes that import this
# module only because they were started by the command.


def run(cfg: DictConfig) -> None:
    """Prepare ``cfg.raw`` and say what was done. Raises UserError if nothing, or under strict not all, was usable."""
    from diffux2ct.data.preparation.prepare import prepare, survey
    from diffux2ct.viz.contact_sheet import write_contact_sheets

    if "prepare" not in cfg.dataset:
        raise UserError(
            f"dataset={cfg.dataset.name} is not made from scans; choose folder, lumbarv, lidc_idri, ..."
        )
    raw = cfg.raw
    recipe = OmegaConf.to_container(cfg.dataset.prepare, resolve=True)
    assert isinstance(recipe, dict)
    recipe = {str(key): value for key, value in recipe.items()}
    recipe |= {key: cfg[key] for key in ("size", "spacing", "crops") if cfg[key] is not None}
    arguments: dict[str, Any] = {
        key: recipe[key] for key in ("source", "origins", "split", "rescale", "labels")
    } | {
        "settings": _settings(recipe),
        "crops": _number("crops", recipe["crops"]),
        "test_crops": None if recipe["test_crops"] is None else _number("test_crops", recipe["test_crops"]),
        "workers": None if cfg.workers is None else _number("workers", cfg.workers),
    }
    if recipe["source"] == "x2ct":
        arguments["xrays"] = recipe.get("xrays", "stored")
        arguments["asked"] = {key for key in ("size", "spacing") if cfg[key] is not None}
    if cfg.dry_run:
        rows, report = survey(raw, **arguments)
        _tell_survey(rows, report)
    else:
        if cfg.out is None and OmegaConf.is_missing(cfg.dataset, "root"):
            raise UserError("out is not given; add out=DIR, the folder to write")
        out = Path(cfg.dataset.root if cfg.out is None else cfg.out)
        report = prepare(cfg.dataset.name, raw, out, **arguments)
        sheets = write_contact_sheets(out) if cfg.contact_sheet else []
        _tell(report, out, sheets)
    if cfg.strict and report.bad:
        raise UserError(f"{len(report.bad)} scans could not be used (listed above), and strict=true")


def _settings(recipe: Mapping[str, Any]) -> "PrepareSettings":
    from diffux2ct.data.preparation.settings import PrepareSettings

    low, high = recipe["window"]
    return PrepareSettings(
        size=_number("size", recipe["size"]),
        spacing=float(_number("spacing", recipe["spacing"], float)),
        camera=recipe["camera"],
        window=(float(_number("window", low, float)), float(_number("window", high, float))),
        seed=_number("seed", recipe["seed"]),
        grid=recipe["grid"],
        remove_couch=_flag("remove_couch", recipe["remove_couch"]),
        instrument=recipe["instrument"],
        projector=recipe["projector"],
        attenuation=recipe["attenuation"],
        pose_jitter=recipe["pose_jitter"],
        min_filled=float(_number("min_filled", recipe["min_filled"], float)),
    )


def _number(key: str, value: Any, kind: type = int) -> Any:
    """The value, if it is a whole number (kind=int) or any number (kind=float); else UserError."""
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise UserError(f"{key}={value}: give a {'whole ' if kind is int else ''}number")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{key}={value}: give true or false")
    return value


def _tell(report: "PrepareReport", out: Path, sheets: list[Path]) -> None:
    from diffux2ct.data.preparation.report import summary_table

    _tell_notes(report)
    print(summary_table(report.summary, listed=False))
    counts = ", ".join(f"{part} {len(ids)}" for part, ids in report.split.items())
    total = sum(map(len, report.split.values()))
    print(
        f"{out}: {total} cases ({counts}); {report.written} written in {report.seconds:.0f} s, "
        f"{report.found} were there; {len(report.bad) + len(report.not_used)} left out"
    )
    if sheets:
        print(f"look at {', '.join(map(str, sheets[:3]))}{', ...' if len(sheets) > 3 else ''}")


def _tell_survey(rows: list[dict[str, Any]], report: "PrepareReport") -> None:
    from diffux2ct.data.preparation.report import by_reason

    _tell_notes(report)
    print(f"{'case':32} {'split':5} {'size':>15} {'spacing, mm':>17} {'axes':4} {'labels':6} source")
    for row in rows:
        size, spacing = "x".join(map(str, row["size"])), " ".join(f"{s:.4g}" for s in row["spacing"])
        labels = "yes" if row["labels"] else "no"
        case = row["case"] if row["num_cases"] == 1 else f"{row['case']} ({row['num_cases']} crops)"
        print(
            f"{case:32} {row['split']:5} {size:>15} {spacing:>17} {row['orientation']:4} {labels:6} {row['source']}"
        )
    left_out = [*report.bad, *report.not_used]
    for reason, count in by_reason(left_out).items():
        print(f"{count:5} left out: {reason}")
    counts = ", ".join(f"{part} {len(ids)}" for part, ids in report.split.items())
    print(
        f"dry run: {len(rows)} scans would be used (cases: {counts}), {len(left_out)} left out; nothing was written"
    )


def _tell_notes(report: "PrepareReport") -> None:
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
    done = export_x2ct(cfg.data, cfg.out, views=cfg.views)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    counts = ", ".join(f"{part} {len(names)}" for part, names in done.split.items())
    total = sum(map(len, done.split.values()))
    print(f"{cfg.out}: {total} cases ({counts}) written in {done.seconds:.0f} s")


def export_main() -> None:
    """The command ``export_x2ct``."""
    hydra_app("export_x2ct", run_export, Export)


def main() -> None:
    """The command; ``--dry-run`` is short for ``dry_run=true``."""
    sys.argv[1:] = ["dry_run=true" if argument == "--dry-run" else argument for argument in sys.argv[1:]]
    hydra_app("prepare", run)
