"""``python evaluate.py ckpt=PATH``: reconstruct a split's cases from their X-rays and score them.

``uncertainty=calibrate``: choose the scale of the intervals around the reconstructions on patients that are not scored.
With the run of a segmentation network (model=vnet): Dice of its structures, as in Table 2.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from diffux2ct.arguments import Count, Device, Positive, Precision, Seed, Share, Split, Weights, Whole, read
from diffux2ct.cli.hydra_app import CONFIGS, hydra_app
from diffux2ct.errors import UserError
from diffux2ct.evaluation.planted.settings import Planting
from diffux2ct.files.atomic import sha256_of, write_text


@dataclass(frozen=True)
class MetricSettings:
    """Keys of the group ``metrics``."""

    protocol: Literal["paper", "x2ct", "psct", "strict"]
    families: list[str]
    segmenter: Path | None
    weights: Path | None
    names: list[str] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Keys of ``configs/evaluate.yaml``."""

    ckpt: Path
    run: Path | None
    root: Path | None
    split: Split
    sampler: Any
    metrics: Annotated[Any, MetricSettings]
    planted: Annotated[Any, Planting]
    weights: Weights
    xray_source: Literal["paired", "shuffled", "swapped"]
    seed: Seed
    device: Device
    precision: Precision
    batch_size: Count
    num_report_cases: Whole
    max_cases: Count | None
    out: Path | None
    perturbation: Literal["random", "zero"] | None
    output: Literal["mean", "sample", "ensemble"] | None
    num_samples: Count | None
    blend: Share | None
    consistency: Whole | None
    consistency_mismatch: Literal["joseph", "siddon", "trilinear"] | Positive | None
    uncertainty: bool | Literal["calibrate"]
    interval: Mapping[str, Any]

    @property
    def part(self) -> str | None:
        """The split, or None where it follows from ``run``."""
        return None if self.split == "auto" else self.split


_RECONSTRUCTION = ("perturbation", "output", "num_samples", "blend", "consistency", "consistency_mismatch")
"""Settings of a reconstruction; which of them count depends on the method."""

_SAYS_NOTHING = {"ckpt", "run", "device", "num_report_cases", "out", "interval"}
"""Keys that change no number of an evaluation."""

_SEGMENTATION = _SAYS_NOTHING | {"root", "split", "weights", "max_cases"}
"""Keys that count for a segmentation network."""

_CALIBRATION = {*("ckpt", "root", "split", "sampler", "weights", "seed", "device", "precision", "max_cases")}
_CALIBRATION |= {"perturbation", "output", "num_samples", "uncertainty", "interval"}
"""Keys that count for a calibration, or may as well be those of the evaluation that follows."""

_MAX_NAME = 200  # bytes; file systems take 255, and files are written under a longer name first


def run(config: DictConfig) -> None:
    """Evaluate as ``config`` says; writes the ``evaluation/`` folder of the run."""
    # Imported here so that --help prints at once.
    from diffux2ct import load
    from diffux2ct.evaluation.uncertainty.calibration import Rule
    from diffux2ct.reconstructors.segmentation import SegmentationTrainable

    cfg = read(Evaluation, config)
    rule = read(Rule, cfg.interval, "interval.")
    if cfg.uncertainty != "calibrate":
        _warn(cfg, Evaluation.__dataclass_fields__.keys() - {"interval"}, "without uncertainty=calibrate")
    loaded = load.load_run(cfg.ckpt, cfg.device, cfg.weights)
    if isinstance(loaded.model, SegmentationTrainable):
        score_segmentation(loaded, loaded.model, cfg)
        return
    if cfg.run is not None:
        raise UserError(f"run={cfg.run}: {loaded.path} reconstructs by itself; leave run= out, or give a V-Net's ckpt=")
    if cfg.uncertainty == "calibrate":
        calibrate(loaded, cfg, rule)
        return
    score_reconstructor(loaded, replace(cfg, split=cfg.part or "test"))


def calibrate(loaded: Any, cfg: Evaluation, rule: Any) -> None:
    """Choose the scales of intervals on a split's patients by ``rule``; writes calibration.json beside the weights."""
    from diffux2ct import build, load
    from diffux2ct.evaluation.uncertainty import fit

    _warn(cfg, _CALIBRATION, "on a calibration")
    # Take the patients: of val, which the model has not seen and which are not scored.
    trained, split = loaded.cfg, cfg.part or "val"
    if cfg.root is None:
        load.check_phantoms(trained.dataset, loaded.path)
    dataset, own = build.build_dataset(trained.dataset, split, cfg.root), Path(trained.dataset.root)
    if cfg.max_cases is not None:
        dataset = dataset.first(cfg.max_cases)
    train_set = None  # splits of one folder share no patient
    if split == "train" or dataset.root.resolve() != own.resolve():
        if (own / "manifest.csv").is_file():
            train_set = build.build_dataset(trained.dataset, "train")
        else:
            print(f"warning: {own}: not there, so patients trained on cannot be refused", file=sys.stderr)

    # Draw, choose the scales and write.
    draws = loaded.draws(cfg.sampler, cfg.num_samples, cfg.perturbation, cfg.seed, cfg.precision)
    about = {"model": loaded.identity(), "dataset": _dataset_name(trained, cfg), "seed": cfg.seed}
    calibration = fit.calibrate(loaded.reconstructor, dataset, draws, rule, train_set, **about)
    calibration.save(loaded.calibration_file)
    print(f"{loaded.path}: step {loaded.step} of {trained.trainer.max_steps}, {draws.num_samples} draws a case")
    for name, scale in calibration.scales.items():
        note = f"by {rule.method} on {calibration.num_patients[name]} patients"
        print(f"{name.replace('_', ' ')}: mean ± {scale:.3g} (std + floor), {note}")
    print(f"calibration: {loaded.calibration_file}")


def _uncertainty(loaded: Any, cfg: Evaluation, dataset: Any, name: str) -> Any:
    """The scores of draws, with the calibration that holds for them, if there is one."""
    from diffux2ct.evaluation.uncertainty.calibration import content_of
    from diffux2ct.evaluation.uncertainty.coverage import Uncertainty

    draws = loaded.draws(cfg.sampler, cfg.num_samples, cfg.perturbation, cfg.seed, cfg.precision, warn=False)
    calibration, note = loaded.calibration(draws)
    if calibration is not None:
        data = sha256_of(dataset.root / "manifest.csv")
        patients = [case.patient for case in dataset.cases]
        calibration.check_others(patients, [content_of(case) for case in dataset.cases], data, name)
        if data != calibration.data:
            note = f"calibrated on another data set ({calibration.dataset}): coverage is not guaranteed here"
    if note:
        print(f"uncertainty: {note}", file=sys.stderr)
    return Uncertainty(draws, calibration, note)


def _dataset_name(trained: DictConfig, cfg: Evaluation) -> str:
    return cfg.root.name if cfg.root else trained.dataset.name


def _sampling(loaded: Any, cfg: Evaluation) -> dict[str, Any]:
    """Keyword arguments of ``reconstruct``."""
    from diffux2ct.diffusion.consistency import Consistency

    if not cfg.consistency:
        _warn(cfg, Evaluation.__dataclass_fields__.keys() - {"consistency_mismatch"}, "without consistency=")
    settings = {key: getattr(cfg, key) for key in _RECONSTRUCTION}
    settings["consistency"] = Consistency.wanted(cfg.consistency, settings.pop("consistency_mismatch"))
    return loaded.sampling(cfg.sampler, uncertainty=bool(cfg.uncertainty), **settings)


def score_reconstructor(loaded: Any, cfg: Evaluation) -> None:
    """Reconstruct and score the cases of a split; writes metrics.json, tables, volumes and a report."""
    import torch

    from diffux2ct import build, load
    from diffux2ct.evaluation.results import score_table
    from diffux2ct.evaluation.runner import evaluate
    from diffux2ct.training.checkpoints.provenance import processor
    from diffux2ct.training.settings import resolve_device

    # Take the model from the run; the data set from the run, or from root=.
    trained, split = loaded.cfg, cfg.part or "test"
    sampling = _sampling(loaded, cfg)
    load.check_phantoms(trained.dataset, loaded.path)
    dataset = build.build_dataset(trained.dataset, split, cfg.root)
    train_set = build.build_dataset(trained.dataset, "train")
    if cfg.max_cases is not None:
        dataset = dataset.first(cfg.max_cases)
    out = cfg.out or default_folder(loaded.path, trained, cfg, sampling)
    if cfg.out is None and loaded.path.name == load.WEIGHTS:
        print(f"note: {loaded.path.parent} is a model folder, so this evaluation is beside it: {out}", file=sys.stderr)

    # Build the metrics whose weights are here, reconstruct, score and write.
    device = resolve_device(cfg.device)
    if "planted" not in cfg.metrics.families:
        _warn(cfg, Evaluation.__dataclass_fields__.keys() - {"planted"}, "without metrics.families=[planted]")
    planting = read(Planting, build.plain(cfg.planted))
    metrics = load.load_metrics(cfg.metrics, device, cfg.precision, planting)
    context = {
        "run": trained.name,
        "dataset": _dataset_name(trained, cfg),
        "root": str(dataset.root),
        "split": split,
        "step": loaded.step,
        "weights": cfg.weights,
        "num_train_cases": len(train_set),
        "processor": processor(device),
        "threads": torch.get_num_threads(),
    }
    uncertainty = _uncertainty(loaded, cfg, dataset, context["dataset"]) if cfg.uncertainty else None
    same = {key: getattr(cfg, key) for key in ("seed", "num_report_cases", "xray_source", "batch_size", "precision")}
    torch.manual_seed(cfg.seed)
    mean = train_set.mean_volume()
    summary = evaluate(
        loaded.reconstructor,
        dataset,
        out,
        sampling=sampling,
        mean_volume=mean,
        metrics=metrics,
        context=context,
        device=device,
        uncertainty=uncertainty,
        **same,
    )
    print(f"{loaded.path}: step {loaded.step} of {trained.trainer.max_steps}")
    print(score_table(summary))
    print(f"metrics: {out / 'metrics.json'}\nreport:  {out / 'report.html'}")


def score_segmentation(loaded: Any, segmenter: Any, cfg: Evaluation) -> None:
    """Score a segmentation network on true CTs, and on the reconstructions of ``cfg.run``; writes dice.json."""
    from diffux2ct import build, load
    from diffux2ct.data.prepared.dataset import PreparedDataset
    from diffux2ct.evaluation.anatomy.segmentation import dice_table, evaluate_segmentation
    from diffux2ct.training.settings import resolve_device

    _warn(cfg, _SEGMENTATION, "on a segmentation network")

    # Take the data set from root=, from the evaluation, or from the network's training.
    evaluation = None if cfg.run is None else find_evaluation(cfg.run)
    evaluated = {} if evaluation is None else data_of(evaluation)
    trained = loaded.cfg
    root, split = cfg.root or evaluated.get("root"), cfg.part or evaluated.get("split") or "test"
    if root is None and evaluation is not None:
        remedy = "give it as root= (and split=, unless test)"
        raise UserError(f"{evaluation}: the folder of its data set is unknown; {remedy}")
    if root is None:
        load.check_phantoms(trained.dataset, loaded.path)
        root = trained.dataset.root
    dataset = PreparedDataset(
        root, split, size=trained.dataset.size, window=build.as_window(trained.dataset), labels=segmenter.structures
    )
    if cfg.max_cases is not None:
        dataset = dataset.first(cfg.max_cases)

    # Segment, compare with the labels and write.
    folder = None if evaluation is None else evaluation / "reconstructions"
    result = evaluate_segmentation(segmenter, dataset, folder, resolve_device(cfg.device))
    record = {
        "segmentation": {"checkpoint": str(loaded.path), "step": loaded.step, "weights": cfg.weights},
        "evaluation": None if evaluation is None else str(evaluation),
        "root": str(root),
        "split": split,
        "size": dataset.size,
        **result,
    }
    out = cfg.out or evaluation or default_folder(loaded.path, trained, replace(cfg, split=split), None)
    write_text(out / "dice.json", json.dumps(record, indent=1) + "\n")
    print(f"{loaded.path}: step {loaded.step} of {trained.trainer.max_steps}")
    print(f"{dice_table(result)}\nscores: {out / 'dice.json'}")


def find_evaluation(run_dir: Path) -> Path:
    """The evaluation folder that ``run_dir`` is or holds. UserError: none, or several."""
    from diffux2ct.comparison.find_runs import find_evaluations

    found = find_evaluations(run_dir, "*")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{run_dir}: holds several evaluations ({names}); give one, for instance run={found[0]}")
    return found[0]


def data_of(evaluation: Path) -> dict[str, Any]:
    """``split`` of an evaluation and ``root``, its data set's folder, or else that of the training."""
    from diffux2ct.comparison.find_runs import read_config, read_evaluation

    summary, _ = read_evaluation(evaluation)
    trained_on = read_config(evaluation).get("dataset")
    root = trained_on.get("root") if isinstance(trained_on, dict) else None
    return {"split": summary.get("split"), "root": summary.get("root") or root}


def default_settings() -> dict[str, Any]:
    """The keys of evaluate.yaml with their defaults."""
    text = files(CONFIGS).joinpath("evaluate.yaml").read_text(encoding="utf-8")
    return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]


def changes(cfg: Evaluation) -> Iterator[tuple[str, Any]]:
    """Settings that are not the default, with dots in the keys of groups."""
    given, defaults = asdict(cfg), default_settings()
    for key, value in given.items():
        default = defaults.get(key)
        if key == "sampler":  # of a group, whose default keeps the run's own
            if any(part is not None for part in (value or {}).values()):
                yield key, value
        elif not isinstance(default, dict):
            if value != default:
                yield key, value
        else:
            value: Any = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
            for name, part in value.items():
                usual = default.get(name)
                if part != usual and not (isinstance(part, list) and usual and set(part) == set(usual)):
                    yield f"{key}.{name}", part


def _warn(cfg: Evaluation, counting: Set[str], where: str) -> None:
    """Name the settings on standard error that are no default and not among ``counting``."""
    if idle := [key for key, _ in changes(cfg) if key.partition(".")[0] not in counting]:
        print(f"warning: {' '.join(idle)}: no effect {where}", file=sys.stderr)


def default_folder(path: Path, trained: DictConfig, cfg: Evaluation, sampling: Mapping[str, Any] | None) -> Path:
    """``<dataset>-<split>-<sampler>`` in the run's `evaluation_folder`, then each setting that is not the default.

    Two evaluations whose settings differ therefore have two folders. path: the checkpoint. trained: its config.
    sampling: None for a segmentation network.
    """
    from diffux2ct.load import evaluation_folder

    marks = [_data_mark(cfg.root, trained.dataset), cfg.part or "test"]
    skipped = _SAYS_NOTHING | {"root", "split", "sampler", *_RECONSTRUCTION}
    if sampling is not None:
        marks += _sampling_marks(sampling)
    for key, value in changes(cfg):
        if key.partition(".")[0] not in skipped and (sampling is not None or key in _SEGMENTATION):
            value = cfg.num_samples or "" if key == "uncertainty" else value
            marks.append(f"{_LABELS.get(key, key.rpartition('.')[2])}{_as_mark(value)}")
    marks += [path.stem] if path.stem not in ("last", "model") else []
    name = "-".join(marks)
    if len(name.encode()) > _MAX_NAME:
        name = f"{name.encode()[: _MAX_NAME - 9].decode(errors='ignore')}-{_hash(name)}"
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return evaluation_folder(folder) / name


_LABELS = {
    "xray_source": "",
    "metrics.protocol": "",
    "metrics.families": "",
    "metrics.names": "",
    "metrics.segmenter": "by-",
    "metrics.weights": "weights-",
    "planted.seed": "places",
    "precision": "",
    "batch_size": "batch",
    "weights": "",
    "max_cases": "first",
}
"""The beginning of a setting's mark; others begin with their key."""


def _sampling_marks(sampling: Mapping[str, Any]) -> list[str]:
    """The sampler, or the output of a method without one, and each setting of it that is not the default."""
    from diffux2ct.diffusion.samplers.sampling import changed_settings, sampling_record

    record, sampler = sampling_record(sampling), sampling.get("sampler")
    consistent = [f"consistency{sampling['consistency']}"] if "consistency" in sampling else []
    if sampler is None:
        parts = {"num_samples": "samples", "num_inference_steps": "steps", "blend": "blend"}
        given = [f"{label}{record[key]:g}" for key, label in parts.items() if key in record]
        return [record.get("output", "direct"), *given, *consistent]
    marks = [f"{record['name']}{record.get('num_inference_steps') or ''}"]
    marks += [f"{key}{_as_mark(value)}" for key, value in changed_settings(sampler).items()]
    return marks + (["z0"] if sampling.get("perturbation") == "zero" else []) + consistent


def _data_mark(root: Path | None, dataset: DictConfig) -> str:
    """The data set's name; another folder than the run's own has a hash of its path, as two may share a name."""
    if root is None:
        return str(dataset.name)
    own = Path(dataset.root).resolve() == root.resolve()
    return root.name if own else f"{root.resolve().name}-{_hash(str(root.resolve()))}"


def _as_mark(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, Path) or (isinstance(value, str) and "/" in value):
        path = Path(value).resolve()
        return f"{path.name}-{_hash(str(path))}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def main() -> None:
    """Console entry."""
    hydra_app("evaluate", run, Evaluation)
