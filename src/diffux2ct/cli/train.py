"""``python train.py``: train any model on any prepared dataset."""

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from diffux2ct.arguments import NotNegative, check_call, convert, read
from diffux2ct.cli import run_main
from diffux2ct.cli.hydra_app import hydra_app, warn_idle
from diffux2ct.cli.prepare import Dataset
from diffux2ct.command_line import as_typed, command
from diffux2ct.errors import Stopped, UserError
from diffux2ct.files.folder_lock import only_writer
from diffux2ct.training.processes.failures import known_failures_in_one_line
from diffux2ct.training.processes.launchers import check_launcher
from diffux2ct.training.settings import TrainerSettings, resolve_device

if TYPE_CHECKING:
    import diffux2ct.training.loop
    from diffux2ct.data.prepared.dataset import PreparedDataset
    from diffux2ct.training.validation import Validator


@dataclass(frozen=True)
class Wandb:
    """Keys of ``logger.wandb``."""

    mode: Literal["disabled", "online", "offline"]
    project: str


@dataclass(frozen=True)
class Logging:
    """Keys of ``logger``."""

    tensorboard: bool
    wandb: Annotated[Any, Wandb]


@dataclass(frozen=True)
class ValidationMetrics:
    """Keys of ``metrics``."""

    names: list[str]


@dataclass(frozen=True)
class Training:
    """Keys of ``configs/train.yaml`` that are no parts of the model."""

    name: str
    run_dir: Path
    dataset: Annotated[Any, Dataset]
    logger: Annotated[Any, Logging]
    metrics: Annotated[Any, ValidationMetrics]
    trainer: Annotated[Any, TrainerSettings] = None


@known_failures_in_one_line()
def run(cfg: DictConfig) -> None:
    """Train as ``cfg`` says; writes ``cfg.run_dir``. UserError where another process writes it."""
    # Check the settings, before anything is read or written.
    cfg, settings = checked(cfg)
    first = int(os.environ.get("RANK", "0")) == 0
    with only_writer(Path(cfg.run_dir)) if first else nullcontext():
        _train(cfg, settings)


def _train(cfg: DictConfig, settings: TrainerSettings) -> None:
    # Imported here so that --help prints at once.
    from diffux2ct import build
    from diffux2ct.training.checkpoints.provenance import record_provenance
    from diffux2ct.training.checkpoints.resume import case_digest, find_resume, make_room
    from diffux2ct.training.loop import Ended, stepping_back, train
    from diffux2ct.training.processes import distributed

    # Join the other processes of this run, and open its data.
    run_dir = Path(cfg.run_dir)
    rank, world = distributed.start()
    settings.check_world(world)
    train_set, validator = _open_data(cfg, settings, rank)

    # Load the previous checkpoint and decide how long to train.
    settings = settings.with_steps_for(len(train_set))
    cfg.trainer.max_steps = settings.max_steps
    config = build.plain(cfg)
    find = partial(find_resume, run_dir, config=config, quiet=rank != 0, cases=case_digest(train_set))
    resume = find(settings.resume)
    distributed.barrier()  # every process has read it before the run's folder changes

    # Begin or continue the run's folder.
    if rank == 0:
        if note := make_room(run_dir, resume):
            print(note, file=sys.stderr)
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        record_provenance(run_dir / "provenance.json", cfg.dataset.root, settings.num_threads)
    distributed.barrier()

    # Train, and say why training ended and how to continue.
    def attempt(step_backs: int) -> Ended:
        return train(
            lambda: build.build_reconstructor(cfg),
            train_set,
            validator,
            build.build_optimizer(cfg),
            build.build_loggers(cfg, run_dir),
            settings,
            run_dir,
            config,
            find("auto", pass_over=int(step_backs > 1)) if step_backs else resume,
            step_backs,
        )

    with _naming_the_next_command():
        ended = stepping_back(attempt, settings)
    if rank == 0:
        print(f"{why_ended(ended, settings)}\ncheckpoint: {ended.checkpoint}")
        print(f"next: {command('evaluate')} {as_typed('ckpt', str(run_dir))}")


def _open_data(cfg: DictConfig, settings: TrainerSettings, rank: int) -> tuple["PreparedDataset", "Validator | None"]:
    """The training set and the validator; one process generates missing phantoms and warns, the others wait for it."""
    from diffux2ct import build
    from diffux2ct.training.processes import distributed

    if rank == 0:
        build.ensure_dataset(cfg.dataset)
    distributed.barrier()
    train_set, validator = build.build_dataset(cfg.dataset, "train", training=True), build.build_validator(cfg)
    warnings = build.split_warnings(cfg, train_set, validator)
    if settings.checkpoint_stages and "checkpoint_stages" not in OmegaConf.to_yaml(cfg.model):
        warnings = [*warnings, "trainer.checkpoint_stages: no effect, this model has no denoiser"]
    for warning in warnings if rank == 0 else ():
        print(f"warning: {warning}", file=sys.stderr)
    return train_set, validator


def checked(cfg: DictConfig) -> tuple[DictConfig, TrainerSettings]:
    """The config with all interpolations resolved, and the trainer's settings; UserError for a value of no use."""
    from diffux2ct import build

    unused = build.unused_parts(cfg) if OmegaConf.is_config(cfg.model) else []
    cfg = build.resolved(cfg)
    check_nodes(cfg)
    cfg.run_dir = f"{cfg.run_dir}{sweep_suffix(cfg)}"
    warn_idle(idle_settings(cfg, unused))
    settings = build.build_settings(cfg)
    resolve_device(settings.device)
    build.check_optimizer(cfg)
    build.check_sampler(cfg)
    build.check_metrics(cfg)
    build.check_views(cfg)
    return cfg, settings


def why_ended(ended: "diffux2ct.training.loop.Ended", settings: TrainerSettings) -> str:
    """Why a run ended, with the command that continues it where one can."""
    if ended.by == "max_minutes":
        place = f"max_minutes={settings.max_minutes:g} reached at step {ended.step} of {settings.max_steps}"
        # Time counts over all parts of a run: the same command would end at once.
        return f"{place}; continue with: {typed_again(max_minutes=2 * (settings.max_minutes or 1))}"
    budget = "max_steps" if settings.max_epochs is None else "max_epochs"
    place = f"{budget}={getattr(settings, budget):g} reached at step {ended.step}"
    if settings.lr_schedule != "constant":
        return f"{place}; lr_schedule={settings.lr_schedule} ends here"
    return f"{place}; continue with: {typed_again(**{budget: 2 * getattr(settings, budget)})}"


def typed_again(**changes: float | int) -> str:
    """The command that this process was started with, with these keys of ``trainer`` replaced."""
    words = sys.argv[1:] if HydraConfig.initialized() else []
    replaced = {_FIXED_KEYS, *(f"trainer.{key}" for key in changes)}
    kept = [word for word in words if word.partition("=")[0] not in replaced]
    added = [f"trainer.{key}={value:.12g}" for key, value in changes.items()]
    # Resuming is the default; the earlier choice would begin again.
    kept = [word for word in kept if not word.startswith("trainer.resume=")]
    start, processes = command("train"), int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and start.startswith("python ") and os.environ.get("LOCAL_WORLD_SIZE") == str(processes):
        start = f"torchrun --nproc-per-node={processes} {start.removeprefix('python ')}"
    return " ".join([start, *map(shlex.quote, kept + added)])


@contextmanager
def _naming_the_next_command() -> Iterator[None]:
    from diffux2ct.training.divergence import Diverged

    try:
        yield
    except Stopped as stopped:
        raise Stopped(f"{stopped}: {typed_again()}" if str(stopped) else "", stopped.signal) from None
    except Diverged as diverged:
        if "the last checkpoint is intact" not in str(diverged):
            raise
        raise UserError(f"{diverged}; continue with: {typed_again()} trainer.on_divergence=step_back") from diverged


def idle_settings(cfg: DictConfig, unused: Sequence[str] = ()) -> dict[str, str]:
    """Settings without effect on the training that ``cfg`` describes, and why. unused: parts not in its model."""
    from diffux2ct import build

    selected, model, trainer = partial(OmegaConf.select, cfg), f"model={cfg.method}", cfg.trainer
    idle = {part: f"{model} has no {part}" for part in unused}
    idle |= {"objective": f"{model} has no objective"} if {"diffusion", "loss"} <= set(unused) else {}
    idle |= {"loss.projection_mode": "loss.projection_weight=0"} if selected("loss.projection_weight") == 0 else {}
    if selected("diffusion.prediction_type") != "epsilon":
        idle |= {"diffusion.eq8": "it is of diffusion.prediction_type=epsilon"}
    if selected("diffusion.schedule") != "linear":
        idle |= dict.fromkeys(("diffusion.beta_start", "diffusion.beta_end"), "they are of diffusion.schedule=linear")
    if not build.reconstructs(cfg):
        keys = (
            "sampler",
            "metrics",
            "trainer.val_every",
            "trainer.num_val_cases",
            "dataset.randomize",
            "dataset.views",
        )
        return idle | dict.fromkeys(keys, f"{model} is no reconstructor")
    idle |= {} if build.samples(cfg) else {"sampler": f"{model} has no sampler"}
    idle |= {} if trainer.val_every else dict.fromkeys(("metrics", "trainer.num_val_cases"), "trainer.val_every=0")
    idle |= {} if trainer.on_divergence != "stop" else {"trainer.max_step_backs": "trainer.on_divergence=stop"}
    idle |= {} if cfg.logger.wandb.mode != "disabled" else {"logger.wandb.project": "logger.wandb.mode=disabled"}
    prepared = set(cfg.dataset.get("prepare") or ()) - {"size", "window"}
    return idle | dict.fromkeys((f"dataset.prepare.{key}" for key in prepared), "the data set is prepared already")


# Groups that a run's name (`run_name` in configs) already shows; the launcher changes nothing.
_IN_NAME = ("experiment", "model", "dataset", "size", "objective")
_NO_SETTING = ("name", "run_dir", "launcher")
_FIXED_KEYS = "hydra.job.config.override_dirname.exclude_keys"


def fixed_keys(arguments: Sequence[str]) -> list[str]:
    """Hydra's way to pass on, to each run of a sweep, the keys that have one value in all of it.

    arguments: the command line's words. Empty unless they start a sweep.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return []
    typed = [word for word in arguments if "=" in word and not word.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(typed)
    except HydraException:  # Hydra reports it
        return []
    fixed = [o.key_or_group for o in overrides if not o.is_sweep_override() and "hydra" not in o.key_or_group]
    return [f"{_FIXED_KEYS}=[{','.join(fixed)}]"] if fixed else []


def check_nodes(cfg: DictConfig) -> None:
    """Raise UserError, naming the key, where a setting of the run has a wrong type or nothing uses it."""
    keys = [field.name for field in fields(Training)]
    read(Training, {key: cfg[key] for key in keys if key != "trainer"})  # that is read where it is built
    if "lr" in cfg.optim:
        convert(NotNegative, cfg.optim.lr, "optim.lr")
    # The model last: its parts are interpolated into it, and are named as they were typed.
    for key in sorted(set(cfg) - set(keys), key=lambda key: key == "model"):
        _check_node(cfg[key], f"{key}.")


def _check_node(node: Any, prefix: str) -> None:
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        try:
            target = get_class(node["_target_"])
        except Exception as error:
            raise UserError(f"{prefix}_target_={node['_target_']}: no such class; name one of ours or yours") from error
        check_call(target, node, prefix)
    for key, part in node.items():
        _check_node(part, f"{prefix}{key}.")


def sweep_suffix(cfg: DictConfig) -> str:
    """In a sweep, the settings that vary in it, so that each run has its own folder."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    hydra = HydraConfig.get()
    overrides = {o.partition("=")[0]: o for o in hydra.overrides.task}
    named = () if {"name", "run_dir"} & set(overrides) else _IN_NAME[: None if "diffusion" in cfg else -1]
    left_out = {*hydra.job.config.override_dirname.exclude_keys, *named, *_NO_SETTING}
    # No comma or equals sign: the name goes into other commands, where Hydra would read them as syntax.
    varying = [o for key, o in overrides.items() if key.lstrip("+~") not in left_out]
    slug = "_".join(re.sub(r"[^\w.-]+", "-", override).strip("-") for override in varying)
    if len(slug) > 120:  # a file name has a limit
        slug = f"{slug[:100]}-{hashlib.sha256(slug.encode()).hexdigest()[:8]}"
    return f"-{slug}" if slug else ""


def main() -> None:
    """Console entry."""
    run_main(lambda: check_launcher(sys.argv[1:]))
    sys.argv += fixed_keys(sys.argv[1:])
    hydra_app("train", recorded(run), Training)


@dataclass(frozen=True)
class Export:
    """Keys of ``configs/export_model.yaml``."""

    ckpt: Path
    out: Path


def export(config: DictConfig) -> None:
    """Write the model folder ``out`` from the run or checkpoint ``ckpt``."""
    from diffux2ct.load import export_model

    cfg = read(Export, config)
    out = export_model(cfg.ckpt, cfg.out)
    print(f"model: {out}\nnext: {command('evaluate')} {as_typed('ckpt', str(out))}")


def export_main() -> None:
    """Console entry of ``export_model.py``: a run's model for others, without what only training needs."""
    hydra_app("export_model", export, Export)


def recorded(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Under torchrun, record this process's own error, which torchrun then shows as the root cause."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return task
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(task)
