"""From a composed config to live objects: the only file that calls Hydra's instantiate."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from diffux2ct.arguments import read
from diffux2ct.data.prepared.augment import Augmentation
from diffux2ct.data.prepared.dataset import PreparedDataset, read_manifest
from diffux2ct.diffusion.samplers.sampling import Sampler, inference_timesteps
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import function_keys, measure
from diffux2ct.reconstructors.base import Reconstructor, Trainable
from diffux2ct.training.loggers import CsvLogger, Logger, Loggers, TensorBoardLogger, WandbLogger
from diffux2ct.training.settings import TrainerSettings, resolve_device
from diffux2ct.training.validation import Validator
from diffux2ct.types import VIEWS
from diffux2ct.xray.effects import XrayRandomization
from diffux2ct.xray.pose import view_angle, view_names

PARTS = ("conditioning", "diffusion", "loss")
"""Nodes that a model's YAML may refer to, as ``${loss}``; for a model that does not, they have no meaning."""


def resolved(cfg: DictConfig) -> DictConfig:
    """The composed config with all interpolations resolved, without the parts that the model does not use.

    Raises UserError for a size that the model does not have, and for a node that was given a word.
    """
    nodes = (
        "dataset",
        "diffusion",
        "loss",
        "metrics",
        "logger",
        "model",
        "optim",
        "recipe",
        "sampler",
        "sizes",
        "trainer",
    )
    for key in nodes:
        if not OmegaConf.is_config(cfg.get(key)):
            choice = "choose objective=epsilon, v or x0, or give" if key in ("diffusion", "loss") else "give"
            raise UserError(f"{key}={cfg.get(key)}: is no choice; {choice} one of its keys as {key}.KEY=VALUE")
    if cfg.size not in cfg.sizes:
        voxels = f" for the network, or dataset.size={cfg.size} for voxels a side" if isinstance(cfg.size, int) else ""
        raise UserError(f"size={cfg.size}: choose one of {', '.join(cfg.sizes)}{voxels}")
    unused = {"sizes", "recipe", *unused_parts(cfg)}
    return OmegaConf.create(
        {str(key): plain(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key] for key in cfg if key not in unused}
    )


def unused_parts(cfg: DictConfig) -> list[str]:
    """The ``PARTS`` of a composed config that its model does not refer to."""
    text = OmegaConf.to_yaml(cfg.model)
    return [part for part in PARTS if not re.search(rf"\$\{{{part}[.}}]", text)]


def build_reconstructor(cfg: DictConfig) -> Trainable:
    """The model that ``cfg.model`` names, with its parts, freshly initialised.

    It is a `Reconstructor`, but for models that ``reconstructs`` denies.
    """
    return _instantiate(cfg.model)


def reconstructs(cfg: DictConfig) -> bool:
    """True where ``cfg.model`` reconstructs CTs; a segmentation network does not."""
    return issubclass(get_class(cfg.model._target_), Reconstructor)


def samples(cfg: DictConfig) -> bool:
    """True where ``cfg.model`` draws its CTs with a sampler."""
    return reconstructs(cfg) and "sampler" in get_class(cfg.model._target_).settings()


def check_sampler(cfg: DictConfig) -> None:
    """UserError where the sampler, the diffusion or its loss refuses its settings, or where they do not fit."""
    if samples(cfg):
        sampler = build_sampler(cfg.sampler)
        if "diffusion" in cfg:
            process = _instantiate(cfg.diffusion)
            inference_timesteps(process.timesteps, sampler.num_inference_steps)
            if "loss" in cfg:
                _instantiate(cfg.loss).check_fits(process)


def check_views(cfg: DictConfig) -> None:
    """UserError where ``dataset.views`` are not what the model takes."""
    names = view_names(plain(cfg.dataset).get("views", (0, 90)))
    lifted = OmegaConf.select(cfg, "lifting.views")
    own = names if lifted is None else view_names(list(lifted), "lifting.views")
    if names == VIEWS == own or not reconstructs(cfg):
        return
    with torch.device("meta"):
        model = build_reconstructor(cfg)
    takes = model.views if isinstance(model, Reconstructor) else VIEWS
    if set(takes) != set(names):
        raise UserError(
            f"dataset.views={list(cfg.dataset.views)}: model={cfg.method} takes {' and '.join(takes)} X-rays; leave "
            "it out, or take model=posterior_flow"
        )
    turned = [angle for angle in map(view_angle, names) if angle % 90]
    if turned and cfg.trainer.deterministic and resolve_device(cfg.trainer.device).type == "cuda":
        raise UserError(
            f"trainer.deterministic=true: a view at {turned[0]:g} degrees has no deterministic gradient on a GPU; "
            "leave it out, or take views at multiples of 90"
        )


def check_metrics(cfg: DictConfig) -> None:
    """UserError for a name in ``metrics.names`` that is no metric, where training is validated."""
    if cfg.trainer.val_every and reconstructs(cfg):
        function_keys(cfg.metrics.names)


def build_settings(cfg: DictConfig) -> TrainerSettings:
    """The trainer's settings, checked; without ``max_steps``, ``max_epochs`` alone counts."""
    node = plain(cfg.trainer)
    if node["max_steps"] is None and node["max_epochs"] is None:
        raise UserError("trainer.max_steps=null: give trainer.max_steps or trainer.max_epochs")
    if node["max_steps"] is None:
        node["max_steps"] = sys.maxsize
    return read(TrainerSettings, node, "trainer.")


def _instantiate(node: DictConfig) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except HydraException as error:
        # What our constructors say to the user comes wrapped; unwrap it.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise cause or error from error


def build_dataset(
    cfg: DictConfig, split: str, root: str | Path | None = None, *, training: bool = False
) -> PreparedDataset:
    """One split of the prepared folder that ``cfg`` (the dataset node) names, or of ``root``.

    training: with ``cfg.randomize`` and ``cfg.augment``; without it, as for all scores, cases stay as prepared.
    """
    folder = Path(root or cfg.root)
    randomize = plain(cfg.randomize) if training and cfg.get("randomize") else None
    return PreparedDataset(
        folder,
        split,
        size=cfg.size,
        window=as_window(cfg),
        xray_normalization=cfg.xray_normalization,
        cache=bool(cfg.get("cache", False)),
        randomize=None if randomize is None else XrayRandomization.from_dict(randomize),
        labels=plain(cfg).get("labels"),
        augment=_augmentation(plain(cfg).get("augment")) if training else None,
        views=plain(cfg).get("views", (0, 90)),
    )


def _augmentation(given: Any) -> Augmentation | None:
    """dataset.augment: true for the usual ranges, a group of them, or null."""
    if isinstance(given, bool | None):
        return Augmentation() if given else None
    if not isinstance(given, dict):
        raise UserError(f"dataset.augment={given}: give true, or ranges such as '{{rotation: 5, elastic: 0.1}}'")
    return read(Augmentation, given, "dataset.augment.")


def as_window(cfg: DictConfig) -> tuple[float, float]:
    """The dataset's HU window."""
    low, high = cfg.window
    return float(low), float(high)


def ensure_dataset(cfg: DictConfig) -> None:
    """Generate the phantoms on first use; other datasets are prepared by a command of their own."""
    if cfg.get("generate") is None:
        return
    from diffux2ct.data.phantom import generate_dataset

    generate_dataset(Path(cfg.root), size=cfg.size, **OmegaConf.to_container(cfg.generate, resolve=True))  # type: ignore


def build_validator(cfg: DictConfig) -> Validator | None:
    """A validator on the ``val`` cases; None without any, when off, and for a model that does not reconstruct."""
    if not cfg.trainer.val_every or not reconstructs(cfg):
        return None
    root = Path(cfg.dataset.root)
    if (root / "manifest.csv").is_file() and not any(row["split"] == "val" for row in read_manifest(root)):
        return None
    dataset = build_dataset(cfg.dataset, "val")
    window = as_window(cfg.dataset)
    metrics = {key: partial(measure, key, window=window) for key in function_keys(cfg.metrics.names)}
    sampling = {"sampler": build_sampler(cfg.sampler)} if samples(cfg) else {}
    return Validator(dataset, metrics, sampling, window)  # type: ignore[arg-type]


def split_warnings(cfg: DictConfig, train_set: PreparedDataset, validator: Validator | None) -> Iterator[str]:
    """Warnings of a split that trains on one patient alone, or validates on none."""
    patients = {case.patient for case in train_set.cases}
    if len(patients) == 1:
        yield f"{train_set.root}: {min(patients)} is the only patient in train"
    if validator is None and cfg.trainer.val_every and reconstructs(cfg):
        yield f"{train_set.root}: no case is in val, so training is not validated"


def build_sampler(cfg: DictConfig) -> Sampler:
    """The sampler that ``cfg`` (the sampler node) names; UserError for a setting that it does not have."""
    target = cfg.get("_target_")
    if target is None:
        raise UserError("sampler: no sampler is chosen; give for instance sampler=ddpm or sampler=ddim")
    try:
        kind = get_class(target)
    except Exception as error:
        raise UserError(f"sampler._target_={target}: there is no such class; name one of yours or ours") from error
    if not issubclass(kind, Sampler):
        raise UserError(f"sampler._target_={target}: is no sampler; name a subclass of Sampler")
    settings = inspect.signature(kind).parameters
    unknown = [f"sampler.{key}={value}" for key, value in cfg.items() if key not in ("_target_", *settings)]
    if unknown:
        raise UserError(
            f"{' '.join(unknown)}: {kind.__name__} has no such setting; it has {', '.join(settings) or 'none'}"
        )
    return _instantiate(cfg)


def build_optimizer(cfg: DictConfig) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """A function that makes an optimiser of parameters; fused kernels if ``trainer.fused``, or null and on a GPU."""
    make = instantiate(cfg.optim, _convert_="all")
    fused = cfg.trainer.get("fused")
    if fused is None:
        fused = cfg.trainer.device != "cpu" and torch.cuda.is_available()
    if fused and "fused" in inspect.signature(make).parameters and "fused" not in cfg.optim:
        return partial(make, fused=True)
    return make


def check_optimizer(cfg: DictConfig) -> None:
    """UserError where the optimiser refuses its settings."""
    try:
        build_optimizer(cfg)([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, IndexError, HydraException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"optim: {reason}; correct it on the command line") from error


def build_loggers(cfg: DictConfig, run_dir: Path) -> Callable[[int], Loggers]:
    """A function that opens the loggers at the step from which the loop continues."""

    def open_loggers(step: int) -> Loggers:
        loggers: list[Logger] = [CsvLogger(run_dir, step)]
        if cfg.logger.tensorboard:
            loggers.append(TensorBoardLogger(run_dir, step))
        if cfg.logger.wandb.mode != "disabled":
            settings = {"project": cfg.logger.wandb.project, "mode": cfg.logger.wandb.mode}
            loggers.append(WandbLogger(run_dir, plain(cfg), name=run_dir.name, resume_step=step, **settings))
        return Loggers(loggers)

    return open_loggers


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as a plain dict, interpolations resolved."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
