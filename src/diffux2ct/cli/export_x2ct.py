"""``scripts/export_x2ct.py``: a prepared folder to X2CT-GAN's HDF5 layout."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from diffux2ct.arguments import read
from diffux2ct.cli.hydra_app import hydra_app


@dataclass(frozen=True)
class Export:
    """Keys of ``configs/export_x2ct.yaml``."""

    data: Path
    out: Path
    views: Literal["folder", "x2ct"]


def run(config: DictConfig) -> None:
    """Export ``data`` to ``out`` and say what was written. Raises UserError, see ``export_x2ct``."""
    # Imported here so that --help answers at once.
    from diffux2ct.data.preparation.x2ct.exchange import export_x2ct

    cfg = read(Export, config)
    report = export_x2ct(cfg.data, cfg.out, views=cfg.views)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    counts = ", ".join(f"{part} {len(names)}" for part, names in report.split.items())
    print(f"{cfg.out}: {report.written} cases ({counts}) written in {report.seconds:.0f} s")


def main() -> None:
    """The command."""
    hydra_app("export_x2ct", run, Export)
