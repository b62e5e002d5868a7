"""``scripts/prepare_dataset.py``: raw CT scans to the folder that training reads."""

import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.data.prepare import PrepareReport, PrepareSettings, prepare
from diffux2ct.errors import UserError


def run(cfg: DictConfig) -> None:
    """Prepare ``cfg.raw`` and say what was done. Raises UserError if nothing, or under strict not all, was usable."""
    if "prepare" not in cfg.dataset:
        raise UserError(
            f"dataset={cfg.dataset.name} is not made from scans; choose folder, lumbarv, lidc_idri, ..."
        )
    raw = cfg.raw
    if cfg.out is None and OmegaConf.is_missing(cfg.dataset, "root"):
        raise UserError("out is not given; add out=DIR, the folder to write")
    out = cfg.dataset.root if cfg.out is None else cfg.out
    recipe = OmegaConf.to_container(cfg.dataset.prepare, resolve=True)
    assert isinstance(recipe, dict)
    recipe |= {key: cfg[key] for key in ("size", "spacing", "crops") if cfg[key] is not None}
    low, high = cfg.dataset.window
    settings = PrepareSettings(
        size=_number("size", recipe["size"]),
        spacing=float(_number("spacing", recipe["spacing"], float)),
        camera=recipe["camera"],
        window=(float(_number("window", low, float)), float(_number("window", high, float))),
        seed=_number("seed", recipe["seed"]),
    )
    report = prepare(
        cfg.dataset.name,
        raw,
        out,
        source=recipe["source"],
        settings=settings,
        crops=_number("crops", recipe["crops"]),
        test_crops=None if recipe["test_crops"] is None else _number("test_crops", recipe["test_crops"]),
        split=recipe["split"],
        workers=None if cfg.workers is None else _number("workers", cfg.workers),
    )
    _tell(report, out)
    if cfg.strict and report.bad:
        raise UserError(f"{len(report.bad)} scans could not be used (listed above), and strict=true")


def _number(key: str, value: Any, kind: type = int) -> Any:
    """The value, if it is a whole number (kind=int) or any number (kind=float); else UserError."""
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise UserError(f"{key}={value}: give a {'whole ' if kind is int else ''}number")
    return value


def _tell(report: PrepareReport, out: str) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for source, reason in report.bad:
        print(f"left out: {source}: {reason}", file=sys.stderr)
    counts = ", ".join(f"{part} {len(ids)}" for part, ids in report.split.items())
    print(
        f"{out}: {report.written + report.found} cases ({counts}); {report.written} written in {report.seconds:.0f} s, "
        f"{report.found} were there; {len(report.bad)} scans left out"
    )


def main() -> None:
    """The command."""
    hydra_app("prepare", run)
