"""From folders that a user names to runs with scores, costs and what they were trained on."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from diffux2ct import build, load
from diffux2ct.command_line import as_typed, command
from diffux2ct.comparison.runs import CaseScores, ScoredRun, is_number, plural
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import find_metric, read_records
from diffux2ct.reconstructors.base import Reconstructor
from diffux2ct.reconstructors.cost import Cost, reconstruction_cost
from diffux2ct.training.checkpoints.resume import changed_keys


def read_runs(folders: Sequence[str | Path], evaluation: str | None = None) -> tuple[list[ScoredRun], list[str]]:
    """The runs in order, each evaluation once, with names that differ; and notes on failures.

    ``evaluation``: name or pattern of the evaluations to take; None takes each run's fullest with paired X-rays.
    UserError: no such folder, none evaluated, a damaged file.
    """
    found = dict.fromkeys(path for folder in folders for path in find_evaluations(Path(folder), evaluation))
    runs, configs, notes = [], [], _chosen_among_several(folders, found) if evaluation is None else []
    # Counting a volume's cost takes seconds a run.
    for path in tqdm(found, desc="compare", unit="run", leave=False):
        config = read_config(path)
        run, note = _read_run(path, config)
        runs.append(run)
        configs.append(config)
        notes += [note] if note else []
    return _experiments(_named(runs), configs), notes


def _chosen_among_several(folders: Sequence[str | Path], found: Iterable[Path]) -> list[str]:
    """A note on the evaluations chosen of runs that have several, unless the user named them."""
    named = {Path(folder).resolve() for folder in folders}
    chosen = [path for path in found if path not in named and len(list(path.parent.glob("[!.]*/metrics.json"))) > 1]
    if not chosen:
        return []
    names = ", ".join(f"{path.parent.parent.name}/{path.name}" for path in chosen)
    return [f"Of several evaluations the fullest, of equals the newest: {names}; --evaluation NAME takes another."]


def find_row(wanted: str, runs: Sequence[ScoredRun]) -> ScoredRun:
    """The row of this name, or that this folder (a run's or an evaluation's) is part of; UserError without one."""
    folder = Path(wanted).resolve()
    for one in runs:
        parts = [part for path in (one.folder, *one.merged) for part in (path, path.parent.parent, run_folder(path))]
        if one.name == wanted or folder in parts:
            return one
    names = ", ".join(one.name for one in runs)
    raise UserError(f"--reference {wanted}: is not among the runs; choose from {names}")


def rename(runs: Sequence[ScoredRun], names: Sequence[str]) -> list[ScoredRun]:
    """The rows under other names; UserError unless there is one for each, and all differ."""
    names = [name.strip() for name in names]
    if len(names) != len(runs) or len(set(names)) != len(names) or "" in names:
        order = ", ".join(one.name for one in runs)
        raise UserError(f"--names: needs {len(runs)} different names, in this order: {order}")
    return [replace(one, name=name) for one, name in zip(runs, names, strict=True)]


def find_evaluations(folder: Path, pattern: str | None) -> list[Path]:
    """The evaluation folder that ``folder`` is, or those that it holds and that ``pattern`` matches.

    Without a pattern: the fullest (metrics times cases) with the cases' own X-rays, of equally full ones the newest.
    """
    if (folder / "metrics.json").is_file():
        return [folder.resolve()]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give folders that train.py wrote, usually under runs/")
    every = sorted(path.parent.resolve() for path in load.evaluation_folder(folder).glob("[!.]*/metrics.json"))
    if not every:
        raise UserError(f"{folder}: {_not_evaluated(folder)}")
    if pattern is not None:
        chosen = [path for path in every if path.match(pattern)]
        if not chosen:
            names = ", ".join(path.name for path in every)
            raise UserError(f"{folder}: holds no evaluation {pattern}; choose from {names}")
        return chosen
    summaries = {path: read_evaluation(path)[0] for path in every}
    paired = [path for path in every if summaries[path].get("xray_source", "paired") == "paired"]
    if not paired:
        raise UserError(
            f"{folder}: was evaluated with wrong X-rays only, as a control; first: {_evaluate(folder)}, or name "
            f"one with --evaluation {every[0].name}"
        )

    def fullness(path: Path) -> tuple[int, int]:
        num_scores = sum(map(is_number, summaries[path].values()))
        return num_scores * int(summaries[path].get("num_cases") or 0), os.stat(path / "metrics.json").st_mtime_ns

    return [max(paired, key=fullness)]


def _not_evaluated(folder: Path) -> str:
    if not (folder / "config.yaml").is_file() and not (folder / "checkpoints").is_dir():
        return "is no run folder; give folders that train.py wrote, usually under runs/"
    if list(load.evaluation_folder(folder).glob("*/dice.json")):
        return "is a segmentation network's run, which reconstructs nothing; leave it out"
    if not (folder / "checkpoints" / "last.pt").is_file() and not (folder / load.WEIGHTS).is_file():
        return "has no checkpoint yet; train it to its end, then evaluate it"
    return f"was never evaluated; first: {_evaluate(folder)}"


def _evaluate(folder: Path) -> str:
    return f"{command('evaluate')} {as_typed('ckpt', str(folder))}"


def run_folder(evaluation: Path) -> Path | None:
    """The run or model folder of an evaluation; None for one that was written elsewhere (``out=``)."""
    beside = evaluation.parent.parent / evaluation.parent.name.removesuffix("-evaluation")
    for folder in (evaluation.parent.parent, beside):
        if load.evaluation_folder(folder) == evaluation.parent and (folder / "config.yaml").is_file():
            return folder
    return None


def read_config(evaluation: Path) -> dict[str, Any]:
    """The config of the run that an evaluation belongs to; empty where that is unknown."""
    folder = run_folder(evaluation)
    if folder is None:
        return {}
    path = folder / "config.yaml"
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML; restore it or remove it") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no config; restore it or remove it")
    return {str(key): value for key, value in config.items()}


def _read_run(evaluation: Path, config: dict[str, Any]) -> tuple[ScoredRun, str]:
    summary, cases = read_evaluation(evaluation)
    folder = run_folder(evaluation)
    trainer = _section(config, "trainer")
    recorded = _provenance(folder)
    seed, batch, train_set = trainer.get("seed"), trainer.get("batch_size"), recorded.get("manifest_sha256")
    cost, note = count_cost(config, summary.get("sampling") or {}, folder) if config else (None, "")
    name, own = str(summary.get("run") or ""), (folder or evaluation).name
    moved_aside = re.fullmatch(rf"{re.escape(name)}\.\d+", own)
    run = ScoredRun(
        name=own if moved_aside or not name else name,
        folder=evaluation,
        summary=summary,
        cases=cases,
        steps=summary.get("step"),
        batch_size=int(batch) if isinstance(batch, int) and is_number(batch) else None,
        seeds=(int(seed),) if isinstance(seed, int) and is_number(seed) else (),
        cost=cost,
        # Without a machine of the evaluation, the training's is taken.
        machine=_machine(summary) or _machine(recorded),
        train_set=train_set if isinstance(train_set, str) else None,
        method=_method(config),
    )
    return run, note


def _method(config: dict[str, Any]) -> str | None:
    """The config's ``method``; where that is missing, the class of its network or of its reconstructor."""
    if isinstance(config.get("method"), str):
        return config["method"]
    model = _section(config, "model")
    parts = [_section(model, "network"), _section(model, "generator"), model]
    targets = (part.get("_target_") for part in parts)
    return next((target.rpartition(".")[2] for target in targets if isinstance(target, str)), None)


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def _provenance(folder: Path | None) -> dict[str, Any]:
    path = None if folder is None else folder / "provenance.json"
    return {} if path is None or not path.is_file() else _read_json(path, "restore it or remove it")


def _machine(recorded: dict[str, Any]) -> str | None:
    if "processor" not in recorded and "threads" not in recorded:
        return None
    # Some processors have no name; then the operating system's name of the machine is taken.
    processor = recorded.get("processor") or recorded.get("machine") or "unnamed processor"
    threads = recorded.get("threads")
    return str(processor) + (f", {threads} thread{'' if threads == 1 else 's'}" if threads else "")


def count_cost(config: dict[str, Any], sampling: dict[str, Any], folder: Path | None) -> tuple[Cost | None, str]:
    """Cost of a volume, counted on the meta device; None and the reason where the config does not build."""
    try:
        if not _section(config, "model"):
            raise UserError("its config holds no model config")
        load.check_targets(config["model"], folder or Path("config.yaml"))
        with torch.device("meta"):
            model = build.build_reconstructor(OmegaConf.create(config))
        if not isinstance(model, Reconstructor):
            raise UserError("it does not reconstruct")
        runs = sampling.get("num_evaluations", sampling.get("num_inference_steps"))
        return reconstruction_cost(model, int(config["dataset"]["size"]), runs), ""
    except Exception as error:  # a config of an older or a changed program may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, f"Parameters and TFLOP of {folder} could not be counted: {reason}."


def _named(runs: list[ScoredRun]) -> list[ScoredRun]:
    """Where runs share a name, the folder's; if that is the same too, with its parent, its evaluation, or its path."""

    def folder(run: ScoredRun) -> Path:
        return run_folder(run.folder) or run.folder

    for name in (
        lambda run: folder(run).name,
        lambda run: "/".join(folder(run).parts[-2:]),
        lambda run: f"{folder(run).name}/{run.folder.name}",
        lambda run: str(run.folder),
    ):
        names = [run.name for run in runs]
        runs = [replace(run, name=name(run)) if names.count(run.name) > 1 else run for run in runs]
    return runs


def _experiments(runs: list[ScoredRun], configs: Sequence[dict[str, Any]]) -> list[ScoredRun]:
    """Each run with the experiment that it shares with those that differ from it in their seed alone."""
    marked = []
    for index, run in enumerate(runs):
        # A run of another seed often has another name, and on another machine the same cases lie elsewhere.
        first = index
        for i, other in enumerate(runs[:index] if configs[index] else ()):
            moved = {"dataset.root"} if run.train_set and other.train_set == run.train_set else set()
            if configs[i] and set(changed_keys(configs[i], configs[index])) <= {"trainer.seed", "name"} | moved:
                first = i
                break
        marked.append(replace(run, experiment=str(first)))
    return marked


# metrics.json and per_case.csv, checked.

_TEXTS = ("run", "dataset", "split", "xray_source", "protocol", "weights", "root", "processor")
_COUNTS = ("num_cases", "num_train_cases", "batch_size", "threads", "step")
_SECTIONS = ("sampling", "unavailable", "segmenter")
_SECTIONS_OF_NUMBERS = ("floor", "num_scored")
_MOST_BYTES = 1 << 28  # of a file: an evaluation of 10,000 cases by 100 metrics has a tenth of it


def read_evaluation(folder: Path) -> tuple[dict[str, Any], CaseScores | None]:
    """metrics.json and per_case.csv (None without one) of an evaluation. UserError: damaged, or of other cases."""
    path, table = folder / "metrics.json", folder / "per_case.csv"
    summary = _read_json(path, "run evaluate.py again")
    if wrong := _wrong(summary):
        raise UserError(f"{path}: not what evaluate.py writes: {wrong}; run evaluate.py again")
    read_records(summary)
    cases = _read_cases(table) if table.is_file() else None
    stated = summary.get("num_cases")
    if cases is not None and stated is not None and stated != len(cases.cases):
        counts = f"{plural(len(cases.cases), 'case')}, and metrics.json is of {stated}"
        raise UserError(f"{table}: holds {counts}; run evaluate.py again")
    return summary, cases


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON file that holds a section. UserError: unreadable, too large, with NaN, or something else."""
    try:
        _check_size(path)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON; {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not what this program writes: no section; {remedy}")
    return content


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError("larger than any evaluation")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _wrong(summary: dict[str, Any]) -> str:
    """The first entry that a comparison reads and that no evaluation writes so; "" without one.

    A missing or null entry is unknown, except that floors and numbers of cases are numbers.
    """
    for key in _TEXTS:
        text = summary.get(key)
        if not isinstance(text, str | None) or not (text or "x").isprintable():
            return f"{key} is no text"
    for key in _COUNTS:
        count = summary.get(key)
        if count is not None and not (is_number(count) and count >= 0 and count == int(count)):
            return f"{key} is no whole number"
    for key in (*_SECTIONS, *_SECTIONS_OF_NUMBERS):
        section = summary.get(key, {})
        if not isinstance(section, dict) and not (section is None and key in _SECTIONS):
            return f"{key} is no section"
    numbers = {key: value for key, value in summary.items() if key == "seconds_per_volume" or find_metric(key)}
    numbers |= {f"floor of {key}": value for key, value in (summary.get("floor", {})).items()}
    numbers |= {f"num_scored of {key}": value for key, value in (summary.get("num_scored", {})).items()}
    numbers |= {key: value for key, value in summary.items() if isinstance(value, (int, float))}
    numbers |= {"eta": (summary.get("sampling") or {}).get("eta")}
    for key, value in numbers.items():
        if not is_number(value) and not (value is None and " of " not in key) and not isinstance(value, bool):
            return f"{key} is no number"
    return ""


def _read_cases(path: Path) -> CaseScores:
    try:
        _check_size(path)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            names = [n for n in reader.fieldnames or () if n not in ("case_id", "patient", "seconds")]
            rows = list(reader)
        if not rows or any(None in row or None in row.values() for row in rows):
            raise ValueError("no line, or one that is cut short or too long")
        scores = {n: np.array([float(row[n]) if row[n] else np.nan for row in rows]) for n in names}
        if not all(is_number(float(row[n])) for row in rows for n in names if row[n]):
            raise ValueError("a score is no number")
        cases, patients = (tuple(row[key] for row in rows) for key in ("case_id", "patient"))
        if len(set(cases)) < len(cases) or not all(c.isprintable() and Path(c).name == c for c in cases):
            raise ValueError("a case is listed twice, or its name is a path")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged; run evaluate.py again") from error
    return CaseScores(cases, patients, scores)
