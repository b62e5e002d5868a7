"""Checkpoints: one file, written atomically, read without running anything it contains."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from diffux2ct.errors import UserError

FORMAT = 1
# What a resumed run may change: budget, cadence and where things are shown, never what is learnt.
FREE_TO_CHANGE = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_minutes",
    "trainer.log_every",
    "trainer.val_every",
    "trainer.num_val_cases",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "trainer.num_workers",
    "trainer.num_threads",
    "trainer.device",
    "trainer.resume",
    "dataset.prepare",  # how raw scans are prepared; training reads what was prepared
    "logger",
    "sampler",
    "metrics",
    "run_dir",
    "dataset.cache",
    "dataset.max_steps",
    "launcher",
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that ``path`` is always a whole checkpoint: the former one or this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: could not write the checkpoint ({error}); the last one is intact"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by ``save``; UserError for a missing, truncated or foreign file."""
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a run folder or a file under its checkpoints/")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way, and each means the same to the user
        raise UserError(f"{path}: not a readable checkpoint, perhaps truncated; use another one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise UserError(f"{path}: not a diffux2ct checkpoint of format {FORMAT}; use one that train.py wrote")
    return state


def changed_keys(saved: dict, current: dict) -> list[str]:
    """Dotted keys that differ between two configs, those free to change left out."""
    a, b = _flatten(saved), _flatten(current)
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k, None) != b.get(k, None))
    return [k for k in keys if not any(k == f or k.startswith(f + ".") for f in FREE_TO_CHANGE)]


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _max_steps(config: dict) -> int:
    return config["trainer"]["max_steps"]


def find_resume(run_dir: Path, resume: str, config: dict) -> dict[str, Any] | None:
    """The state to go on from, or None for a fresh start.

    ``resume``: ``auto`` (the run folder's last checkpoint, if any), ``never``, or a path. UserError when the
    checkpoint was made under another config, naming the keys.
    """
    last = run_dir / "checkpoints" / "last.pt"
    if resume == "never" or (resume == "auto" and not last.exists()):
        return None
    path = last if resume == "auto" else Path(resume)
    state = load(path)
    changed = changed_keys(state["config"], config)
    if config["trainer"]["lr_schedule"] == "cosine" and _max_steps(state["config"]) != _max_steps(config):
        changed.append("trainer.max_steps, on which lr_schedule=cosine depends")
    if changed:
        raise UserError(
            f"{path}: was made under another config ({', '.join(changed[:6])}{' ...' if len(changed) > 6 else ''}); "
            "give this run another name=..., or trainer.resume=never to start it over"
        )
    return state


def forget_later(folder: Path, step: int) -> None:
    """Remove numbered checkpoints past ``step``: a run started over, or from an earlier one, makes its own."""
    for path in folder.glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` numbered checkpoints."""
    numbered = sorted(folder.glob("step_*.pt"))
    for path in numbered[: max(0, len(numbered) - keep_last)]:
        path.unlink()
