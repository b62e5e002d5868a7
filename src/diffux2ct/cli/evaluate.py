"""``python evaluate.py ckpt=PATH``: reconstruct a split's cases from their X-rays and score them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig

from diffux2ct.arguments import Count, Device, Precision, Seed, Split, Weights, Whole, read
from diffux2ct.cli.hydra_app import hydra_app


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
    root: Path | None
    split: Split
    sampler: Any
    metrics: Annotated[Any, MetricSettings]
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


def run(config: DictConfig) -> None:
    """Evaluate as ``config`` says; writes the ``evaluation/`` folder of the run."""
    # Imported here so that --help answers at once.
    import torch

    from diffux2ct import build, load
    from diffux2ct.evaluation.runner import evaluate
    from diffux2ct.training.checkpoints.provenance import processor
    from diffux2ct.training.settings import resolve_device

    cfg = read(Evaluation, config)
    loaded = load.load_run(cfg.ckpt, cfg.device, cfg.weights)
    trained = loaded.cfg
    sampling = loaded.sampling(cfg.sampler, cfg.perturbation)
    load.check_phantoms(trained.dataset, loaded.path)
    dataset = build.build_dataset(trained.dataset, cfg.split, cfg.root)
    train_set = build.build_dataset(trained.dataset, "train")
    if cfg.max_cases is not None:
        dataset = dataset.first(cfg.max_cases)
    name = Path(cfg.root).name if cfg.root else trained.dataset.name
    out = Path(cfg.out) if cfg.out else default_folder(loaded.path, name, cfg, sampling)
    device = resolve_device(cfg.device)
    metrics = load.load_metrics(cfg.metrics, device, cfg.precision)
    torch.manual_seed(cfg.seed)
    summary = evaluate(
        loaded.reconstructor,
        dataset,
        out,
        sampling=sampling,
        mean_volume=train_set.mean_volume(),
        metrics=metrics,
        seed=cfg.seed,
        context={
            "run": trained.name,
            "dataset": name,
            "root": str(dataset.root),
            "split": cfg.split,
            "step": loaded.step,
            "weights": cfg.weights,
            "num_train_cases": len(train_set),
            "processor": processor(device),
            "threads": torch.get_num_threads(),
        },
        device=device,
        num_report_cases=cfg.num_report_cases,
        xray_source=cfg.xray_source,
        batch_size=cfg.batch_size,
        precision=cfg.precision,
    )
    print(f"{loaded.path}: step {loaded.step} of {trained.trainer.max_steps}")
    print(score_table(summary))
    print(f"metrics: {out / 'metrics.json'}\nreport:  {out / 'report.html'}")


def score_table(summary: Mapping[str, Any]) -> str:
    """What the console shows of metrics.json: each score beside its floor, and a word where it is not better."""
    from diffux2ct.evaluation.metric import find_metric, metric_of

    floors = summary["floor"]
    keys = [key for key in summary if find_metric(key) or key in floors]
    titles = {key: metric_of(key).heading for key in keys}
    width = max(map(len, titles.values()), default=0)
    cases = f"(floor: the mean training volume, {summary['num_cases']} cases)"
    lines = [f"{'':{width}}{'model':>10}{'floor':>10}   {cases}"]
    for key in keys:
        line = f"{titles[key]:{width}}{summary[key]:10.3f}"
        if key in floors:
            metric = metric_of(key)
            line += f"{floors[key]:10.3f}"
            if metric.sign and not metric.better(summary[key], floors[key]):
                line += "   no better than the floor"
        if key in summary["num_scored"]:
            line += f"   of {summary['num_scored'][key]} cases"
        lines.append(line)
    return "\n".join(
        [*lines, *(f"{name}: unavailable: {why}" for name, why in summary["unavailable"].items())]
    )


def default_folder(path: Path, dataset: str, cfg: Evaluation, sampling: dict) -> Path:
    """``<run>/evaluation/<dataset>-<split>-<sampler>``; whatever else departs from the default is marked too."""
    from diffux2ct.diffusion.samplers.sampling import changed_settings, sampling_record
    from diffux2ct.evaluation.metric_set import DEFAULT_FAMILIES

    record, sampler = sampling_record(sampling), sampling.get("sampler")
    marks = [dataset, cfg.split, f"{record.get('name', 'direct')}{record.get('num_inference_steps', '')}"]
    marks += [cfg.xray_source] if cfg.xray_source != "paired" else []
    marks += [cfg.metrics.protocol] if cfg.metrics.protocol != "paper" else []
    marks += [] if set(cfg.metrics.families) == set(DEFAULT_FAMILIES) else ["+".join(cfg.metrics.families)]
    marks += [f"by-{Path(cfg.metrics.segmenter).resolve().name}"] if cfg.metrics.segmenter else []
    marks += [cfg.precision] if cfg.precision != "bf16" else []
    marks += [f"batch{cfg.batch_size}"] if cfg.batch_size != 1 else []
    marks += [cfg.weights] if cfg.weights != "ema" else []
    marks += [f"first{cfg.max_cases}"] if cfg.max_cases else []
    marks += [f"seed{cfg.seed}"] if cfg.seed else []
    changed = changed_settings(sampler) if sampler else {}
    marks += [
        f"{key}{value:g}" if isinstance(value, (int, float)) else f"{key}{value}"
        for key, value in changed.items()
    ]
    marks += ["z0"] if sampling.get("perturbation") == "zero" else []
    marks += [path.stem] if path.stem not in ("last", "model") else []
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return folder / "evaluation" / "-".join(marks)


def main() -> None:
    """Console entry."""
    hydra_app("evaluate", run, Evaluation)
