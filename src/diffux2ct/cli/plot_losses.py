"""``python scripts/plot_losses.py RUN [RUN ...]``: curves of what training logged."""

import argparse
from pathlib import Path

from diffux2ct.cli import run_main
from diffux2ct.viz.loss_curves import draw_curves, read_curves


def main() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(
        prog="plot_losses.py",
        description="Plot what training logged (metrics.csv): a panel per objective. Needs the extra viz.",
        epilog="example: python scripts/plot_losses.py runs/x2ct_gan --smooth 5 --out losses.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument(
        "--out", type=Path, default=Path("losses.png"), help="picture to write (losses.png; .svg, .pdf)"
    )
    parser.add_argument("--smooth", type=int, default=1, metavar="N", help="average over N logged points (1)")
    arguments = parser.parse_args()
    if arguments.smooth < 1:
        parser.error("--smooth: must be at least 1")
    run_main(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    names = [run.resolve().name for run in arguments.runs]
    # Runs of one name in several folders are told apart by their paths.
    labels = names if len(set(names)) == len(names) else [str(run) for run in arguments.runs]
    curves = {label: read_curves(run) for label, run in zip(labels, arguments.runs, strict=True)}
    draw_curves(curves, arguments.out, arguments.smooth)
    print(f"curves: {arguments.out}")
