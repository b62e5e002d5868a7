"""``python train.py``: train any model on any prepared dataset."""

import json
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffux2ct import build
from diffux2ct.cli.hydra_app import as_typed, hydra_app
from diffux2ct.training import checkpoint, distributed
from diffux2ct.training.loop import train
from diffux2ct.training.settings import resolve_device


def run(cfg: DictConfig) -> None:
    """Train as ``cfg`` says; writes ``cfg.run_dir``."""
    cfg = cfg.copy()
    run_dir = Path(cfg.run_dir + sweep_suffix())
    cfg.run_dir = str(run_dir)
    settings = build.build_settings(cfg)
    resolve_device(settings.device)
    build.check_optimizer(cfg)
    rank, world = distributed.start()
    settings.check_world(world)
    if rank == 0:  # one process makes the phantoms, the others wait for them
        build.ensure_dataset(cfg.dataset)
    distributed.barrier()
    train_set = build.build_dataset(cfg.dataset, "train")
    settings = settings.with_steps_for(len(train_set))
    cfg.trainer.max_steps = settings.max_steps
    config = build.plain(cfg)
    checkpoint.find_resume(run_dir, settings.resume, config)  # refuses before the run's folder is written
    validator = build.build_validator(cfg)
    if rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        (run_dir / "provenance.json").write_text(json.dumps(build.provenance(cfg), indent=2) + "\n")
    path = train(
        lambda: build.build_reconstructor(cfg),
        train_set,
        validator,
        build.build_optimizer(cfg),
        build.build_loggers(cfg, run_dir),
        settings,
        run_dir,
        config,
    )
    if rank == 0:
        script = "evaluate.py" if build.reconstructs(cfg) else "scripts/segment.py"
        print(f"checkpoint: {path}\nnext: python {script} {as_typed('ckpt', str(run_dir))}")


def sweep_suffix() -> str:
    """In a sweep, what sets this run apart from its sisters, so that each has its own folder."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    overrides = [
        o for o in HydraConfig.get().overrides.task if not re.match(r"(experiment|name|run_dir)=", o)
    ]
    # No comma or equals sign: the name goes into other commands, where Hydra would read them as syntax.
    slug = "_".join(re.sub(r"[^\w.-]+", "-", override).strip("-") for override in overrides)
    return f"-{slug}" if slug else ""


def main() -> None:
    """Console entry."""
    hydra_app("train", run)
