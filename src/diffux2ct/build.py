"""From a composed config to live objects: the only file that calls Hydra's instantiate."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import function_keys, measure
from diffux2ct.reconstructors.base import Reconstructor, Trainable
from diffux2ct.training.checkpoints import checks as contents
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.loggers import CsvLogger, Logger, Loggers, TensorBoardLogger, WandbLogger
from diffux2ct.training.settings import TrainerSettings, resolve_device
from diffux2ct.training.state import prepare_model
from diffux2ct.training.validation import Validator
from diffux2ct.xray.effects import XrayRandomization

if TYPE_CHECKING:
    from diffux2ct.evaluation.metric_set import MetricSet


def build_reconstructor(cfg: DictConfig) -> Trainable:
    """The model that ``cfg.model`` names, with its parts, freshly initialised.

    It is a `Reconstructor`, but for models that ``reconstructs`` denies.
    """
    return _instantiate(cfg.model)


def reconstructs(cfg: DictConfig) -> bool:
    """Whether ``cfg.model`` makes CTs; a segmentation network does not."""
    return issubclass(get_class(cfg.model._target_), Reconstructor)


def build_settings(cfg: DictConfig) -> TrainerSettings:
    """The trainer's settings, checked."""
    return _instantiate(cfg.trainer)


def _instantiate(node: DictConfig) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except HydraException as error:
        # What our constructors say to the user comes wrapped; unwrap it.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise cause or error from error


def build_dataset(cfg: DictConfig, split: str, root: str | None = None) -> PreparedDataset:
    """One split of the prepared folder that ``cfg`` (the dataset node) names, or of ``root``.

    ``cfg.randomize`` counts for the training split alone: what scores a model stays as prepared.
    """
    folder = Path(root or cfg.root)
    randomize = plain(cfg.randomize) if split == "train" and cfg.get("randomize") else None
    return PreparedDataset(
        folder,
        split,
        size=cfg.size,
        window=as_window(cfg),
        xray_normalization=cfg.xray_normalization,
        cache=bool(cfg.get("cache", False)),
        randomize=None if randomize is None else XrayRandomization.from_dict(randomize),
        labels=plain(cfg).get("labels"),
    )


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


def check_phantoms(cfg: DictConfig, ckpt: Path) -> None:
    """UserError where the phantoms that a run was trained on are gone.

    They are not made again: their place and number are what the checkpoint says, which may be foreign.
    """
    if cfg.get("generate") is not None and not (Path(cfg.root) / "manifest.csv").is_file():
        raise UserError(
            f"{cfg.root}: the phantoms that {ckpt} was trained on are not there; run its train.py command again, which "
            "makes them, or start from the folder in which it was trained"
        )


def build_validator(cfg: DictConfig) -> Validator | None:
    """A validator on the ``val`` cases; None without any, when off, and for a model that does not reconstruct."""
    if not cfg.trainer.val_every or not reconstructs(cfg):
        return None
    split = Path(cfg.dataset.root) / "split.json"
    if split.is_file() and not json.loads(split.read_text())["val"]:
        return None
    dataset = build_dataset(cfg.dataset, "val")
    window = as_window(cfg.dataset)
    metrics = {key: partial(measure, key, window=window) for key in function_keys(cfg.metrics.names)}
    return Validator(dataset, metrics, plain(cfg.sampler), window)


def build_metrics(cfg: DictConfig, device: torch.device, precision: str = "fp32") -> "MetricSet":
    """The metrics of an evaluation that ``cfg`` (the metrics node) names; precision: of a segmentation network."""
    # Here, so that training loads none of it.
    from diffux2ct.evaluation.metric_set import MetricSet
    from diffux2ct.reconstructors.segmentation import SegmentationTrainable

    segmenter, record = None, None
    if cfg.segmenter is not None:
        run = load_run(cfg.segmenter, str(device))
        segmenter, record = run.model, {"run": run.cfg.name, "step": run.step}
        if not isinstance(segmenter, SegmentationTrainable):
            raise UserError(
                f"{run.path}: not a segmentation network; train one with python train.py model=vnet, and give its run "
                "as metrics.segmenter="
            )
    metrics = MetricSet.make(
        plain(cfg)["families"],
        cfg.protocol,
        functions=plain(cfg)["names"],
        device=device,
        weights=cfg.weights,
        segmenter=segmenter,
        precision=precision,
    )
    metrics.context["segmenter"] = record
    return metrics


def build_optimizer(cfg: DictConfig) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """What makes an optimiser from parameters; with fused kernels where ``trainer.fused``, or null and on a GPU."""
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
    except (TypeError, ValueError) as error:
        raise UserError(f"optim: {error}; correct it on the command line") from error


def build_loggers(cfg: DictConfig, run_dir: Path) -> Callable[[int], Loggers]:
    """What opens the loggers once the loop knows the step that it goes on from."""

    def open_loggers(step: int) -> Loggers:
        loggers: list[Logger] = [CsvLogger(run_dir, step)]
        if cfg.logger.tensorboard:
            loggers.append(TensorBoardLogger(run_dir, step))
        if cfg.logger.wandb:
            settings = {"project": cfg.logger.wandb.project, "mode": cfg.logger.wandb.mode}
            loggers.append(WandbLogger(run_dir, plain(cfg), name=run_dir.name, resume_step=step, **settings))
        return Loggers(loggers)

    return open_loggers


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as a plain dict, interpolations resolved."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


@dataclass
class LoadedRun:
    """A checkpoint's model, ready for use, and where it came from."""

    model: Trainable
    cfg: DictConfig
    path: Path
    step: int

    @property
    def reconstructor(self) -> Reconstructor:
        """The model; UserError where it is one that does not reconstruct."""
        if not isinstance(self.model, Reconstructor):
            raise UserError(
                f"{self.path}: does not reconstruct, it is a {type(self.model).__name__}; give the run of a "
                "reconstructor (scripts/segment.py takes segmentation networks)"
            )
        return self.model

    def sampling(self, changes: DictConfig) -> dict[str, Any]:
        """The run's own sampler with the ``changes`` that are not null, as far as its method has a use for them.

        A change without effect is told on standard error.
        """
        changed = {key: value for key, value in plain(changes).items() if value is not None}
        used = self.reconstructor.settings_of(plain(self.cfg.sampler) | changed)
        idle = [f"sampler.{key}={value}" for key, value in changed.items() if key not in used]
        if idle:
            kind = type(self.model).__name__
            print(f"warning: {' '.join(idle)}: no effect, a {kind} has no such setting", file=sys.stderr)
        return used


def load_run(ckpt: str | Path, device: str = "auto", weights: str = "ema") -> LoadedRun:
    """Rebuild a model from a run folder or checkpoint file; UserError where that cannot be.

    ``weights``: ``ema`` takes the averaged weights if the run kept them, ``raw`` the last step's.
    """
    path = Path(ckpt)
    state = checkpoint.load(path)
    path = path / "checkpoints" / "last.pt" if path.is_dir() else path
    contents.check_holds(path, state, "config", "step")
    contents.check_config(path, state["config"])
    check_targets(state["config"]["model"], path)
    cfg = OmegaConf.create(state["config"])
    assert isinstance(cfg, DictConfig)
    model = _rebuilt(cfg, path)
    values = state["model"]
    contents.check_fits(path, values, model.state_dict())
    if weights == "ema" and state.get("ema") is not None:
        names = {f"average.{name}": name for name, _ in model.named_parameters()}
        averaged = {key: model.get_parameter(name) for key, name in names.items()}
        contents.check_average(path, state["ema"], averaged)
        values = values | {name: state["ema"][key] for key, name in names.items()}
    model.load_state_dict(values)
    model = prepare_model(model, resolve_device(device), bool(cfg.trainer.get("channels_last", True))).eval()
    return LoadedRun(model, cfg, path, int(state["step"]))


def _rebuilt(cfg: DictConfig, path: Path) -> Trainable:
    """The model of a checkpoint's config, which may hold anything."""
    try:
        model = build_reconstructor(cfg)
    except UserError as error:
        raise UserError(f"{path}: its config builds no model ({error})") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{path}: its config builds no model ({reason}); use a checkpoint that train.py wrote"
        ) from error
    if not isinstance(model, Trainable):
        raise UserError(
            f"{path}: its config builds a {type(model).__name__}, no model; use one that train.py wrote"
        )
    return model


_OUR_CLASS = re.compile(r"diffux2ct\.(models|diffusion|reconstructors)(\.\w+)+\.[A-Z]\w*")


def check_targets(node: Any, path: Path) -> None:
    """UserError unless a checkpoint's model config names classes of this package only.

    Instantiating a config calls what it names, so a foreign file could otherwise run any program. A saved config
    has no interpolations left; one that has is refused too.
    """
    if node is None:
        raise UserError(f"{path}: holds no model config; use a checkpoint that train.py wrote")
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        foreign = key == "_target_" and not _OUR_CLASS.fullmatch(str(value))
        if foreign or (isinstance(value, str) and "${" in value):
            raise UserError(
                f"{path}: its config names '{contents.shown(value)}', which is no part of diffux2ct; refused"
            )
        if value is not None:
            check_targets(value, path)


def load_reconstructor(ckpt: str | Path, device: str = "auto") -> tuple[Reconstructor, DictConfig]:
    """The model of a run and the config it was trained under."""
    run = load_run(ckpt, device)
    return run.reconstructor, run.cfg
