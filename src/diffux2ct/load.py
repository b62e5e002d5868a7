"""From a checkpoint or a model folder to a model that is ready for use.

A model folder holds ``model.safetensors`` and ``config.yaml``: the weights for use, without optimisers, and all that
loading them needs, so that it works on a machine without the run and without its prepared data set.
"""

import hashlib
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffux2ct.build import build_reconstructor, build_sampler, plain
from diffux2ct.command_line import as_typed, command
from diffux2ct.data.prepared.dataset import read_description
from diffux2ct.diffusion.samplers.sampling import Sampler, sampling_record
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_folder, write_text
from diffux2ct.reconstructors.base import Reconstructor, Trainable
from diffux2ct.reconstructors.precision import effective
from diffux2ct.training.checkpoints import checks as contents
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.settings import resolve_device
from diffux2ct.training.state import prepare_model
from diffux2ct.xray.camera import spacing_xyz

if TYPE_CHECKING:
    from diffux2ct.evaluation.metric_set import MetricSet
    from diffux2ct.evaluation.planted.settings import Planting
    from diffux2ct.evaluation.uncertainty.calibration import Calibration
    from diffux2ct.evaluation.uncertainty.spread import Draws

WEIGHTS, CALIBRATION = "model.safetensors", "calibration.json"
_NUM_SAMPLES = 8  # draws of a spread, of a method without a number of its own
_TYPED = {"num_inference_steps": "sampler.num_inference_steps"}
_FEW_SAMPLES = 4  # below, the standard deviation is known to half of itself at best
_FORMAT = "diffux2ct 1"


@dataclass
class LoadedRun:
    """A model ready for use, with the config that it was trained under and the file that it comes from."""

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
                "reconstructor"
            )
        return self.model

    @property
    def name(self) -> str:
        """The shortest ``ckpt=`` for this file: the run's folder for its last checkpoint, or the model folder."""
        if self.path.name == WEIGHTS:
            return str(self.path.parent)
        own_last = self.path.parts[-2:] == ("checkpoints", "last.pt")
        return str(self.path.parent.parent if own_last else self.path)

    @property
    def calibration_file(self) -> Path:
        """The file of the intervals' calibration: in the run's folder, or in the model folder."""
        folder = self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent
        return folder / CALIBRATION

    def identity(self) -> dict[str, Any]:
        """Step and SHA-256 of the weights, the same in a run and in the model folder exported from it."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return {"step": self.step, "sha256": digest.hexdigest()}

    def draws(
        self,
        changes: Sampler | Mapping[str, Any],
        num_samples: int | None,
        perturbation: str | None,
        seed: int,
        precision: str,
        warn: bool = True,
    ) -> "Draws":
        """The draws of a spread, see `sampling`; ``num_samples``: None: as many as the model has, or 8."""
        from diffux2ct.evaluation.uncertainty.spread import Draws

        known = self.reconstructor.settings()
        wanted: dict[str, Any] = {"perturbation": perturbation}
        if "output" in known:
            wanted["output"] = "sample"
        settings = self.sampling(changes, warn, **wanted)
        number = num_samples or getattr(self.reconstructor, "num_samples", _NUM_SAMPLES)
        if number < _FEW_SAMPLES:
            print(f"note: num_samples={number}: the spread of so few draws is coarse; give 8 or more", file=sys.stderr)
        device = next(self.model.parameters()).device
        return Draws(number, settings, seed, effective(precision, device), device)

    def calibration(self, draws: "Draws") -> "tuple[Calibration | None, str]":
        """The calibration that holds for such draws; or None, and the reason. UserError: a damaged file."""
        from diffux2ct.evaluation.uncertainty.calibration import Calibration

        found = Calibration.load(self.calibration_file)
        if found is None:
            return (
                None,
                f"not calibrated; {command('evaluate')} {as_typed('ckpt', self.name)} uncertainty=calibrate does it",
            )
        reason = found.misfit(draws.num_samples, sampling_record(draws.settings), self.identity(), draws.precision)
        return (found, "") if reason is None else (None, reason)

    def sampling(
        self, changes: Sampler | Mapping[str, Any], warn: bool = True, uncertainty: bool = False, **settings: Any
    ) -> dict[str, Any]:
        """Keyword arguments of ``reconstruct``: the sampler and whatever the method takes of ``settings``.

        ``changes``: another sampler, its config with ``_target_``, or settings to replace in the run's own sampler.
        ``settings``: for instance ``perturbation`` (z of Eq. 5), ``output``; None: the model's own value.
        A method that has steps but no sampler takes ``num_inference_steps`` of such settings, not another sampler's.
        Changes that the method does not use are warned of on standard error, unless ``warn`` is off since they were
        before. UserError for a setting that the method has and this output does not use. ``uncertainty``: draws are
        made besides, which have their own use for the number of samples and of steps.
        """
        model, sampler = self.reconstructor, changes if isinstance(changes, Sampler) else None
        given = vars(changes) if isinstance(changes, Sampler) else changes
        given = {key: value for key, value in given.items() if value is not None}
        known, idle = model.settings(), []
        of_draws = {"num_samples", "num_inference_steps"} if uncertainty else set()
        if "sampler" in known:
            if sampler is None:
                node = given if "_target_" in given else plain(self.cfg.sampler) | given
                sampler = build_sampler(OmegaConf.create(node))
            settings["sampler"] = sampler
        else:
            # Another sampler's steps are not this method's, which has none.
            if "num_inference_steps" in known and sampler is None and "_target_" not in given:
                settings["num_inference_steps"] = given.pop("num_inference_steps", None)
            idle = [f"sampler.{key}={value}" for key, value in given.items()]
        complete, kind = model.complete(settings), type(model).__name__
        spare = [key for key, value in settings.items() if value is not None and key not in {*complete, *of_draws}]
        idle += [f"{key}={settings[key]}" for key in spare if key not in known]
        if idle and warn:
            print(f"warning: {' '.join(idle)}: no effect, a {kind} has no such setting", file=sys.stderr)
        if spare := [key for key in spare if key in known]:
            shown = " ".join(f"{_TYPED.get(key, key)}={settings[key]}" for key in spare)
            remedy = "output=ensemble" + ("" if spare == ["blend"] else " or uncertainty=true")
            raise UserError(f"{shown}: no effect on output={complete.get('output')}; leave it out, or give {remedy}")
        return complete


def load_run(ckpt: str | Path, device: str = "auto", weights: str = "ema") -> LoadedRun:
    """Rebuild a model from a run folder, a checkpoint file or a model folder; UserError where it cannot be used.

    Nothing in the files is executed. ``weights``: ``ema`` takes the averaged weights if the run kept them, ``raw``
    those of the last step, which a model folder does not hold.
    """
    path = Path(ckpt)
    if path.name == WEIGHTS or (path / WEIGHTS).is_file():
        return _load_folder(path.parent if path.name == WEIGHTS else path, device, weights)
    state = checkpoint.load(path)
    path = path / "checkpoints" / "last.pt" if path.is_dir() else path
    contents.check_holds(path, state, "config", "step")
    cfg, model = _rebuilt(state["config"], path)
    values = state["model"]
    contents.check_fits(path, values, model.state_dict())
    if weights == "ema" and state.get("ema") is not None:
        parameters = dict(model.named_parameters())
        contents.check_average(path, state["ema"], parameters)
        values = values | {name: state["ema"][f"average.{name}"] for name in parameters}
    return _ready(model, values, cfg, path, int(state["step"]), device)


def evaluation_folder(run: Path) -> Path:
    """The folder of a run's evaluations. Those of a model folder, which is passed on, are beside it."""
    if not (run / WEIGHTS).is_file():
        return run / "evaluation"
    run = run.resolve() if run.name in ("", "..") else run
    return run.with_name(f"{run.name}-evaluation")


def _load_folder(folder: Path, device: str, weights: str) -> LoadedRun:
    path = folder / WEIGHTS
    if weights != "ema":
        raise UserError(f"{folder}: a model folder holds one set of weights; leave out weights={weights}")
    config = _read_config(folder / "config.yaml")
    values, step = _read_weights(path)
    contents.check_types(folder / "config.yaml", {"config": config})
    cfg, model = _rebuilt(config, folder / "config.yaml")
    contents.check_fits(path, values, model.state_dict())
    return _ready(model, values, cfg, path, step, device)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of a model folder's file, and the step at which they were saved."""
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the whole model folder again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable safetensors file, perhaps truncated; copy it again") from error
    step = metadata.get("step", "")
    if metadata.get("format") != _FORMAT or not re.fullmatch(r"\d{1,12}", step, re.ASCII):
        raise UserError(f"{path}: not weights that {command('export_model')} wrote; use a model folder of ours")
    return values, int(step)


def _read_config(path: Path) -> Any:
    """A model folder's config, as unchecked plain values."""
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the whole model folder again")
    try:
        text = path.read_text(encoding="utf-8")
        # An alias can stand for exponentially much text; ours have none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has an alias")
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (ValueError, OSError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a readable config ({reason}); copy the model folder again") from error
    return config


def export_model(ckpt: str | Path, out: str | Path) -> Path:
    """Write the model folder ``out`` from a run or checkpoint, with the averaged weights if the run kept them.

    config.yaml holds size, spacing and camera of the prepared data set, so that the model works without it; the
    calibration of its intervals goes along. Returns the folder. UserError where ``out`` exists: it may hold
    evaluations.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists already; give out= another name")
    run = load_run(ckpt, "cpu")
    config = plain(run.cfg)
    dataset = config["dataset"]
    if (Path(dataset["root"]) / "dataset.json").is_file():
        made = read_description(dataset["root"])
        size = dataset["size"] = int(made["size"] if dataset["size"] is None else dataset["size"])
        dataset["spacing"] = [step * made["size"] / size for step in spacing_xyz(made["spacing"])]
        dataset["camera"] = {"preset": made.get("preset"), "geometry": made.get("camera")}
    values = {name: value.contiguous().clone() for name, value in run.model.state_dict().items()}
    with replaced_folder(out) as partial:
        save_file(values, partial / WEIGHTS, {"format": _FORMAT, "step": str(run.step)})
        (partial / WEIGHTS).chmod(0o644)  # safetensors lets its owner alone read it
        write_text(partial / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        if run.calibration_file.is_file():
            shutil.copyfile(run.calibration_file, partial / CALIBRATION)
    return out


def _ready(
    model: Trainable, values: dict[str, Tensor], cfg: DictConfig, path: Path, step: int, device: str
) -> LoadedRun:
    model.load_state_dict(values)
    model = prepare_model(model, resolve_device(device), bool(cfg.trainer.get("channels_last", True))).eval()
    return LoadedRun(model, cfg, path, step)


def _rebuilt(config: Any, path: Path) -> tuple[DictConfig, Trainable]:
    """A saved config, which may hold anything, checked, and its model."""
    contents.check_config(path, config)
    check_targets({"model": config["model"], "sampler": config["sampler"]}, path)
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
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
        raise UserError(f"{path}: its config builds a {type(model).__name__}, no model; use one that train.py wrote")
    return cfg, model


_OUR_CLASS = re.compile(r"diffux2ct\.(models|diffusion|reconstructors)(\.\w+)+\.[A-Z]\w*")


def check_targets(node: Any, path: Path) -> None:
    """UserError unless a checkpoint's config of a model or a sampler names classes of this package only.

    Instantiating a config calls what it names, so a foreign file could otherwise run any program. A saved config
    has no interpolations left; one that has is refused too.
    """
    for key, value in contents.leaves(node):
        named = key.rpartition("_target_")[1]
        if (named and not _OUR_CLASS.fullmatch(str(value))) or "${" in str(value):
            name = contents.shown(value)
            raise UserError(f"{path}: its config names '{name}', which is no part of diffux2ct; refused")


def load_metrics(
    cfg: DictConfig, device: torch.device, precision: str = "fp32", planting: "Planting | None" = None
) -> "MetricSet":
    """The metrics of an evaluation that ``cfg`` (the metrics node) names, with its segmentation network if any.

    ``precision``: of that network. ``planting``: of the family `planted`.
    """
    # Here, so that training loads none of it.
    from diffux2ct.evaluation.metric_set import MetricSet
    from diffux2ct.reconstructors.segmentation import SegmentationTrainable

    segmenter, record = None, None
    if cfg.segmenter is not None:
        run = load_run(cfg.segmenter, str(device))
        segmenter, record = run.model, {"run": run.cfg.name, "step": run.step}
        if not isinstance(segmenter, SegmentationTrainable):
            raise UserError(
                f"{run.path}: not a segmentation network; train one with {command('train')} model=vnet, and give "
                "its run as metrics.segmenter="
            )
    metrics = MetricSet.make(
        plain(cfg)["families"],
        cfg.protocol,
        functions=plain(cfg)["names"],
        device=device,
        weights=cfg.weights,
        segmenter=segmenter,
        precision=precision,
        planting=planting,
    )
    metrics.context["segmenter"] = record
    return metrics


def check_phantoms(cfg: DictConfig, ckpt: Path) -> None:
    """UserError where the phantoms that a run was trained on are gone.

    They are not generated again: the checkpoint names their folder and number, and it may be foreign.
    """
    if cfg.get("generate") is not None and not (Path(cfg.root) / "manifest.csv").is_file():
        raise UserError(
            f"{cfg.root}: the phantoms that {ckpt} was trained on are not there; run its train.py command again, which "
            "generates them, or start from the folder in which it was trained"
        )
