"""``python train.py``: train any model on any prepared dataset."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffux2ct import build
from diffux2ct.cli import run_main
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.command_line import as_typed
from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints.provenance import record_provenance
from diffux2ct.training.checkpoints.resume import case_digest, find_resume
from diffux2ct.training.loop import stepping_back, train
from diffux2ct.training.processes import distributed
from diffux2ct.training.processes.failures import told_in_one_line
from diffux2ct.training.settings import resolve_device

# Options of `launcher` that come with an extra: its name, and the plugin's package.
LAUNCHERS = {
    "slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
}


@told_in_one_line()
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
        if settings.checkpoint_stages and "denoiser" not in cfg.model:
            print(
                "warning: trainer.checkpoint_stages: no effect, this model has no denoiser", file=sys.stderr
            )
        build.ensure_dataset(cfg.dataset)
    distributed.barrier()
    train_set = build.build_dataset(cfg.dataset, "train")
    settings = settings.with_steps_for(len(train_set))
    cfg.trainer.max_steps = settings.max_steps
    config = build.plain(cfg)
    # Refuses before the run's folder is written.
    find_resume(run_dir, settings.resume, config, quiet=True, cases=case_digest(train_set))
    validator = build.build_validator(cfg)
    if rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        record_provenance(run_dir / "provenance.json", cfg.dataset.root, settings.num_threads)
    path = stepping_back(
        lambda settings, step_backs: train(
            lambda: build.build_reconstructor(cfg),
            train_set,
            validator,
            build.build_optimizer(cfg),
            build.build_loggers(cfg, run_dir),
            settings,
            run_dir,
            config,
            step_backs,
        ),
        settings,
    )
    if rank == 0:
        script = "evaluate.py" if build.reconstructs(cfg) else "scripts/segment.py"
        print(f"checkpoint: {path}\nnext: python {script} {as_typed('ckpt', str(run_dir))}")


def sweep_suffix() -> str:
    """In a sweep, what sets this run apart from its sisters, so that each has its own folder."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    overrides = [
        o for o in HydraConfig.get().overrides.task if not re.match(r"(experiment|name|run_dir|launcher)=", o)
    ]
    # No comma or equals sign: the name goes into other commands, where Hydra would read them as syntax.
    slug = "_".join(re.sub(r"[^\w.-]+", "-", override).strip("-") for override in overrides)
    if len(slug) > 120:  # a file name has a limit
        slug = f"{slug[:100]}-{hashlib.sha256(slug.encode()).hexdigest()[:8]}"
    return f"-{slug}" if slug else ""


def check_launcher(arguments: Sequence[str]) -> None:
    """UserError where the command line names a launcher that has no plugin or Slurm here, or that needs a sweep."""
    chosen = [word.partition("=")[2] for word in arguments if word.startswith("launcher=")]
    name = chosen[-1] if chosen else ""
    if name not in LAUNCHERS:
        return
    extra, plugin = LAUNCHERS[name]
    if find_plugin(plugin) is None:
        raise UserError(
            f"launcher={name}: its plugin is not installed; pip install -c constraints.txt 'diffux2ct[{extra}]'"
        )
    if not {"-m", "--multirun", "--help", "--cfg", "-h", "-c"} & set(arguments):
        raise UserError(
            f"launcher={name}: starts the runs of a sweep; add -m (scripts/train_slurm.sh: one run)"
        )
    if name == "slurm" and {"-m", "--multirun"} & set(arguments) and shutil.which("srun") is None:
        raise UserError("launcher=slurm: this machine has no srun; start it on a Slurm cluster's login node")


def find_plugin(name: str) -> ModuleSpec | None:
    """Where a Hydra plugin lies, None where it is not installed."""
    try:
        return find_spec(name)
    except ModuleNotFoundError:  # no plugin at all
        return None


def main() -> None:
    """Console entry."""
    run_main(lambda: check_launcher(sys.argv[1:]))
    hydra_app("train", recorded(run))


def recorded(command: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Under torchrun, tell it this process's own error, which it then shows as the root cause; else as it is."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return command
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)
