"""Resuming: the checkpoint that a run continues from, and a place for an earlier run that it does not continue."""

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_folder
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.checkpoints.checks import shown

# Keys that a resumed run may change: budget, cadence, speed and display, never what is learnt.
# fmt: off
_FREE_OF_TRAINER = (
    "max_steps", "max_epochs", "max_minutes", "log_every", "val_every", "num_val_cases", "checkpoint_every",
    "keep_last", "num_workers", "num_threads", "device", "resume", "compile", "fused", "deterministic", "strategy",
    "checkpoint_stages", "on_divergence", "max_step_backs", "explosion_ratio", "profile",
)
# fmt: on
FREE_TO_CHANGE = (
    *(f"trainer.{key}" for key in _FREE_OF_TRAINER),
    "model.perturbation",  # of reconstructions alone
    "dataset.prepare",  # how raw scans are prepared; training reads what was prepared
    "dataset.cache",
    "dataset.max_steps",
    "logger",
    "sampler",
    "metrics",
    "run_dir",
    "launcher",
)


def changed_keys(saved: dict, current: dict) -> list[str]:
    """Dotted keys that differ between two configs, those free to change left out."""
    a, b = _flatten(saved), _flatten(current)
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k, None) != b.get(k, None))
    keys.sort(key=lambda k: k not in ("method", "size"))  # these two explain most of the others
    free = (*FREE_TO_CHANGE, *(k for k in keys if k.endswith(".checkpoint_stages")))  # of any network
    return [k for k in keys if not any(k == f or k.startswith(f + ".") for f in free)]


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass
class Resume:
    """A checkpoint to continue from: its file and its state, read once.

    ``is_auto``: the newest of the run's own folder, not one that the user named.
    """

    path: Path
    state: dict[str, Any]
    is_auto: bool = True


def _max_steps(config: dict) -> int | None:
    return config["trainer"].get("max_steps")


def case_digest(dataset: Dataset) -> str | None:
    """SHA-256 of the ids of a training set's cases, whose order fixes the batches; None for a set without ids."""
    cases = getattr(dataset, "cases", None)
    return cases and hashlib.sha256("\n".join(case.case_id for case in cases).encode()).hexdigest()


def find_resume(
    run_dir: Path,
    resume: str,
    config: dict[str, Any],
    quiet: bool = False,
    pass_over: int = 0,
    cases: str | None = None,
) -> Resume | None:
    """The checkpoint to continue from, or None for a fresh start.

    ``resume``: ``auto`` (the run folder's newest checkpoint, if any), ``never``, or a path. ``auto`` passes over
    damaged files and, unless ``quiet``, warns about them; ``pass_over``: also over so many of the newest, as long as
    there is another. ``cases``: the training set's `case_digest`. UserError when none is whole, when the checkpoint was
    made under another config, naming the keys, and with ``auto`` when it was made with other cases.
    """
    if resume == "never":
        return None
    found = _newest_whole(run_dir / "checkpoints", quiet, pass_over) if resume == "auto" else Path(resume)
    if found is None:
        return None
    if isinstance(found, Path) and found.is_dir():
        found = found / "checkpoints" / "last.pt"
    path, state = found if isinstance(found, tuple) else (found, checkpoint.load(found))
    changed = changed_keys(state.get("config") or {}, config)
    schedule = config["trainer"]["lr_schedule"]
    sooner = ""
    if schedule != "constant" and not changed and _max_steps(state["config"]) != _max_steps(config):
        changed.append(f"trainer.max_steps, on which lr_schedule={schedule} depends")
        sooner = "end it sooner by trainer.max_minutes=..., "
    if resume != "auto":  # a run may begin from another's checkpoint
        changed = [key for key in changed if key != "name"]
    if changed:
        keys = ", ".join(map(shown, changed[:6])) + (" ..." if len(changed) > 6 else "")
        raise UserError(
            f"{path}: was made under another config ({keys}); "
            f"{sooner}give this run another name=..., or trainer.resume=never to begin anew"
        )
    if resume == "auto" and cases and state.get("cases", cases) != cases:
        raise UserError(
            f"{path}: was trained on other cases (the manifest or the split has changed since); give this run another "
            f"name=..., or trainer.resume={path} to go on with these"
        )
    return Resume(path, state, resume == "auto")


def make_room(run_dir: Path, resume: Resume | None) -> str | None:
    """Keep an earlier run whose checkpoints the coming one would replace, as ``<run>.1``, ``.2``, ...

    A run that continues from an earlier checkpoint of its own folder leaves a copy there (checkpoints by hard links);
    any other run that does not continue the one in ``run_dir`` moves it. Returns a line that says so, None where
    nothing is to be kept. The earlier run is whole in one of the two places whenever the process is killed.
    """
    folder = run_dir / "checkpoints"
    newest = checkpoint.candidates(folder)[:1]
    if not newest or (resume and (resume.is_auto or newest[0].samefile(resume.path))):
        return None
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    if resume and resume.path.resolve().parent == folder.resolve():
        with replaced_folder(aside) as partial:
            shutil.copytree(run_dir, partial, dirs_exist_ok=True, copy_function=_copy)
        return f"{run_dir}: continues from {resume.path.name}; the run as it was is kept in {aside}"
    run_dir.rename(aside)
    return f"{run_dir}: begins anew; the earlier run is kept in {aside}"


def _copy(source: str, target: str) -> str:
    if source.endswith(".pt"):  # never written in place
        try:
            os.link(source, target)
            return target
        except OSError:
            pass  # no hard links on this file system
    return shutil.copy2(source, target)


def _newest_whole(folder: Path, quiet: bool, pass_over: int) -> tuple[Path, dict[str, Any]] | None:
    refused: list[str] = []
    files = checkpoint.candidates(folder)
    for path in files[min(pass_over, max(0, len(files) - 1)) :]:
        try:
            state = checkpoint.load(path)
        except UserError as error:
            refused.append(str(error).split(";")[0])
            continue
        if refused and not quiet:
            print(f"warning: {'; '.join(refused)}; continuing from {path}", file=sys.stderr)
        return path, state
    if refused:
        raise UserError(
            f"{folder}: no checkpoint in it can be read ({'; '.join(refused)}); trainer.resume=never begins anew"
        )
    return None
