"""``python scripts/summarize_model.py``: parameters, FLOP and memory of a model, counted on the meta device."""

import json
import sys
from typing import Any

from omegaconf import DictConfig

from diffux2ct.arguments import convert
from diffux2ct.cli.hydra_app import hydra_app, warn_idle
from diffux2ct.cli.train import Training, check_nodes


def run(cfg: DictConfig) -> None:
    """Print the summary of the model that ``cfg`` names, as a table or as JSON (``json=true``)."""
    cfg, as_json = checked(cfg)
    summary = summarize(cfg)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    print(f"model at {cfg.dataset.size}^3, batch {summary['batch_size']}; nothing is allocated")
    print(f"{'part':34}{'parameters (M)':>16}{'fwd TFLOP':>12}{'saved fp32 (GiB)':>18}")
    for name, part in summary["parts"].items():
        print(f"{name:34}{part['parameters'] / 1e6:16.3f}{part['forward_tflop']:12.4f}{part['saved_gib']:18.2f}")
    print("FLOP = 2 x multiply-accumulate of convolutions and matrix products; saved = kept for backward, in fp32.")


def checked(cfg: DictConfig) -> tuple[DictConfig, bool]:
    """The config with all interpolations resolved, and ``json``; UserError for a value of no use."""
    from diffux2ct import build

    cfg = build.resolved(cfg)
    check_nodes(cfg)
    build.check_views(cfg)
    idle = [f"trainer.{key}" for key in cfg.trainer if key != "checkpoint_stages"]
    warn_idle(dict.fromkeys([*idle, "optim", "sampler", "metrics", "logger"], "it changes no cost that is counted"))
    return cfg, convert(bool, cfg.json, "json")


def summarize(cfg: DictConfig) -> dict[str, Any]:
    """Parameters, forward TFLOP and activation memory (GiB, fp32, batch 1) per part and in total."""
    import torch

    from diffux2ct import build
    from diffux2ct.reconstructors.cost import meta_xrays, part_cost
    from diffux2ct.types import VIEWS

    with torch.device("meta"):
        model = build.build_reconstructor(cfg)
        size = cfg.dataset.size
        batch = {"volume": torch.empty(1, 1, size, size, size), "seed": torch.zeros(1, dtype=torch.long)}
        batch |= meta_xrays(size, getattr(model, "views", VIEWS))
        parts = {
            name: {"parameters": sum(p.numel() for p in part.parameters()), **part_cost(model, call)}
            for name, (part, call) in model.parts(batch).items()
        }
    total = {key: sum(part[key] for part in parts.values()) for key in ("forward_tflop", "saved_gib")}
    total["parameters"] = sum(p.numel() for p in model.parameters())
    return {"size": cfg.dataset.size, "batch_size": 1, "parts": {**parts, "total": total}}


def main() -> None:
    """Console entry; ``--json`` is short for ``json=true``."""
    sys.argv = ["json=true" if argument == "--json" else argument for argument in sys.argv]
    hydra_app("summarize", run, Training)
