"""The Hydra configs, installed as the package ``diffux2ct.configs``, and the resolvers that they use."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf

# The default of evaluate.py and reconstruct.py: the run's own sampler, of which any setting may be changed.
ConfigStore.instance().store("own", OmegaConf.create({}, flags={"struct": False}), group="sampler")


def run_name(*own: str, _root_: DictConfig) -> str:
    """Name of a run: its experiment, or else its model, then whatever differs from the experiment's own choices.

    ``own``: the experiment's name and the model, dataset, size and objective that go without saying in it. The default
    experiment has none, the others name at least their model. A plain folder of CTs adds its own path.
    """
    name, model, dataset, size, objective = (*own, "", "", "", "", "")[:5]
    parts = [name or _root_.method]
    parts += [_root_.method] if name and _root_.method != model else []
    parts += [_root_.dataset.name] if _root_.dataset.name != dataset else []
    if _root_.dataset.name == "folder" and not OmegaConf.is_missing(_root_.dataset, "root"):
        parts.append(_folder_name(Path(_root_.dataset.root).absolute()))
    parts += [_root_.size] if _root_.size != (size or "paper") else []
    if "${diffusion" in OmegaConf.to_yaml(_root_.model) and OmegaConf.is_config(_root_.diffusion):
        kind = _root_.diffusion.prediction_type
        parts += [kind] if kind != (objective or "epsilon") else []
    return "-".join(str(part) for part in parts if part != "")


def _folder_name(root: Path) -> str:
    """Name of a folder in that of its runs: its path below the data folder or this one, or else with a hash of it."""
    for near in (Path(os.environ.get("DIFFUX2CT_DATA", "data")).absolute(), Path.cwd()):
        if root != near and root.is_relative_to(near):
            return re.sub(r"[^\w.-]+", "-", str(root.relative_to(near))).strip("-")
    name = re.sub(r"[^\w.-]+", "-", root.name).strip("-")
    return f"{name}-{hashlib.sha256(str(root).encode(errors='surrogateescape')).hexdigest()[:6]}"


def stored_size(*, _parent_: DictConfig) -> int:
    """Voxels per side of the dataset node's prepared folder; before there is one, of those it would be prepared to."""
    root = None if OmegaConf.is_missing(_parent_, "root") else _parent_.root
    try:
        return int(json.loads((Path(root or "") / "dataset.json").read_text(encoding="utf-8"))["size"])
    except (OSError, ValueError, KeyError, TypeError):  # its reader reports what is wrong with it
        return _parent_.prepare.size


def phantom_name(*, _parent_: DictConfig) -> str:
    """Name of a set of phantoms, by their region."""
    region = OmegaConf.select(_parent_, "generate.region") or "lumbar"
    return "phantom" if region == "lumbar" else f"phantom_{region}"


def least(value: float | int | None, limit: float | int) -> float | int | None:
    """The smaller of the two; None, which turns a setting off, stays None."""
    return None if value is None else min(value, limit)


def of_views(channels: Sequence[int], views: Any) -> ListConfig:
    """Channels of lifted features, given those of two views: a view has the same in every model."""
    count = len(views) if OmegaConf.is_list(views) else 2  # its reader reports what is wrong with it
    return OmegaConf.create([width // 2 * count for width in channels])


for resolver in (run_name, stored_size, phantom_name, least, of_views):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
