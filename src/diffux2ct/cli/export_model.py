"""``scripts/export_model.py ckpt= out=``: a run's model for others, without what only training needs."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from diffux2ct.arguments import read
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.command_line import as_typed, command


@dataclass(frozen=True)
class Export:
    """Keys of ``configs/export_model.yaml``."""

    ckpt: Path
    out: Path


def run(config: DictConfig) -> None:
    """Write the model folder ``out`` from the run or checkpoint ``ckpt``."""
    # Imported here so that --help answers at once.
    from diffux2ct.load import export_model

    cfg = read(Export, config)
    out = export_model(cfg.ckpt, cfg.out)
    print(f"model: {out}\nnext: {command('evaluate')} {as_typed('ckpt', str(out))}")


def main() -> None:
    """Console entry."""
    hydra_app("export_model", run, Export)
