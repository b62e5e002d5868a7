"""``python scripts/segment.py ckpt=VNET_RUN run=EVALUATED_RUN``: Dice per structure, as in Table 2."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffux2ct.arguments import Count, Device, Split, Weights, read
from diffux2ct.atomic import write_text
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.errors import UserError


@dataclass(frozen=True)
class Segmentation:
    """Keys of ``configs/segment.yaml``."""

    ckpt: Path
    run: Path | None
    root: Path | None
    split: Split | None
    weights: Weights
    device: Device
    max_cases: Count | None
    out: Path | None


def run(config: DictConfig) -> None:
    """Score as ``config`` says; prints a table and writes dice.json."""
    # Imported here so that --help answers at once.
    from diffux2ct import build, load
    from diffux2ct.data.prepared.dataset import PreparedDataset
    from diffux2ct.evaluation.anatomy.segmentation import dice_table, evaluate_segmentation
    from diffux2ct.reconstructors.segmentation import SegmentationTrainable
    from diffux2ct.training.settings import resolve_device

    cfg = read(Segmentation, config)
    evaluation = None if cfg.run is None else find_evaluation(cfg.run)
    evaluated = {} if evaluation is None else read_metrics(evaluation)
    loaded = load.load_run(cfg.ckpt, cfg.device, cfg.weights)
    segmenter, trained = loaded.model, loaded.cfg
    if not isinstance(segmenter, SegmentationTrainable):
        raise UserError(
            f"{loaded.path}: not a segmentation network; train one with python train.py model=vnet, and give the "
            "reconstructor's run as run="
        )
    root, split = cfg.root or evaluated.get("root"), cfg.split or evaluated.get("split") or "test"
    if root is None and evaluation is not None:
        raise UserError(
            f"{evaluation}: does not tell the data set's folder; give it as root= (and split=, unless test)"
        )
    if root is None:
        load.check_phantoms(trained.dataset, loaded.path)
        root = trained.dataset.root
    dataset = PreparedDataset(
        root,
        split,
        size=trained.dataset.size,
        window=build.as_window(trained.dataset),
        labels=segmenter.structures,
    )
    if cfg.max_cases is not None:
        dataset = dataset.first(cfg.max_cases)
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
    out = Path(cfg.out) if cfg.out else evaluation or default_folder(loaded.path, Path(root), split)
    write_text(out / "dice.json", json.dumps(record, indent=1) + "\n")
    print(f"{loaded.path}: step {loaded.step} of {trained.trainer.max_steps}")
    print(f"{dice_table(result)}\nscores: {out / 'dice.json'}")


def find_evaluation(run_dir: Path) -> Path:
    """The evaluation folder that ``run_dir`` is, or holds; UserError where there is none, or several."""
    if (run_dir / "metrics.json").is_file():
        return run_dir
    found = sorted(path.parent for path in (run_dir / "evaluation").glob("[!.]*/metrics.json"))
    if not found:
        raise UserError(f"{run_dir}: holds no evaluation; first: python evaluate.py ckpt={run_dir}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{run_dir}: holds several evaluations ({names}); give one, for instance run={found[0]}"
        )
    return found[0]


def read_metrics(evaluation: Path) -> dict[str, Any]:
    """``split`` of an evaluation and ``root``, its data set's folder; where it does not tell, that of the training."""
    path = evaluation / "metrics.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged; run evaluate.py again") from error
    found = {key: told[key] for key in ("split", "root") if told.get(key)}
    config = evaluation.parent.parent / "config.yaml"
    if "root" not in found and evaluation.parent.name == "evaluation" and config.is_file():
        found["root"] = OmegaConf.select(OmegaConf.load(config), "dataset.root")  # type: ignore[arg-type]
    return found


def default_folder(ckpt: Path, root: Path, split: str) -> Path:
    """``<run>/evaluation/<dataset>-<split>`` of the segmentation network."""
    run_dir = ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent
    return run_dir / "evaluation" / f"{root.name}-{split}"


def main() -> None:
    """Console entry."""
    hydra_app("segment", run, Segmentation)
