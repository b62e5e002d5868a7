"""``python scripts/reconstruct.py ckpt= frontal= lateral= out=``: two X-ray files in, a CT out."""

from pathlib import Path

from omegaconf import DictConfig

from diffux2ct.build import plain
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.inference import reconstruct


def run(cfg: DictConfig) -> None:
    """Reconstruct as ``cfg`` says; writes reconstruction.nii.gz, xrays_used.png and reconstruct.json to ``cfg.out``."""
    names = (
        "frontal",
        "lateral",
        "seed",
        "head_up",
        "spacing",
        "origin",
        "weights",
        "device",
        "precision",
        "perturbation",
    )
    settings = {name: plain(cfg)[name] for name in names}
    out = Path(cfg.out)
    made = reconstruct(cfg.ckpt, **settings, sampler=plain(cfg.sampler))
    made.write_folder(out)
    for note in made.record["notes"]:
        print(f"warning: {note}")
    print(f"reconstruction: {out / 'reconstruction.nii.gz'} (position: {made.record['origin_source']})")
    print(f"X-rays as used: {out / 'xrays_used.png'}")


def main() -> None:
    """Console entry."""
    hydra_app("reconstruct", run)
