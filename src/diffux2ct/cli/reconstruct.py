"""``python scripts/reconstruct.py ckpt= frontal= lateral= out=``: X-ray files in, a CT out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from diffux2ct.arguments import Count, Device, Positive, Precision, Seed, Share, Three, Weights, Whole, read
from diffux2ct.cli.hydra_app import hydra_app


@dataclass(frozen=True)
class Request:
    """Keys of ``configs/reconstruct.yaml``."""

    ckpt: Path
    frontal: Path | None
    lateral: Path | None
    others: Mapping[Any, Path] | None
    out: Path
    head_up: bool | None
    sampler: Any
    weights: Weights
    spacing: Positive | tuple[Positive, Positive, Positive] | None
    origin: Three | None
    seed: Seed
    device: Device
    precision: Precision
    perturbation: Literal["random", "zero"] | None = None
    output: Literal["mean", "sample", "ensemble"] | None = None
    num_samples: Count | None = None
    blend: Share | None = None
    consistency: Whole | None = None
    uncertainty: bool = False


def run(config: DictConfig) -> None:
    """Reconstruct as ``config`` says; writes volumes, xrays_used.png and reconstruct.json to ``out``."""
    from diffux2ct.build import plain
    from diffux2ct.diffusion.samplers.sampling import sampling_words
    from diffux2ct.inference.reconstruct import reconstruct

    cfg = read(Request, config)
    own = ("ckpt", "out", "sampler")
    settings = {key: getattr(cfg, key) for key in Request.__dataclass_fields__ if key not in own}
    out = cfg.out
    made = reconstruct(cfg.ckpt, **settings, sampler=plain(cfg.sampler))
    made.write_folder(out)
    for note in made.record["notes"]:
        print(f"warning: {note}")
    print(f"reconstruction: {out / 'reconstruction.nii.gz'} (position: {made.record['origin_source']})")
    if words := sampling_words(made.record["sampler"]):
        print(f"output: {words}")
    for name in made.uncertainty:
        print(f"uncertainty: {out / name}.nii.gz")
    print(f"X-rays as used: {out / 'xrays_used.png'}")


def main() -> None:
    """Console entry."""
    hydra_app("reconstruct", run, Request)
