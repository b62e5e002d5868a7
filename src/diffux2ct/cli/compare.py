"""``python scripts/compare.py RUN RUN ...``: runs x metrics with the floor and what each run costs."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from diffux2ct.arguments import Count, convert
from diffux2ct.cli import run_main
from diffux2ct.command_line import in_form
from diffux2ct.errors import UserError

FORMATS = {".md": "markdown", ".tex": "latex", ".html": "html", ".csv": "csv"}

_EXAMPLES = """examples:
  python scripts/compare.py runs/table3_*                      a table in Markdown, on the screen
  python scripts/compare.py runs/table1_* --sort psnr3d --out table1.md --out table1.tex --out table1.html
  python scripts/compare.py runs/table3_* --merge-seeds --intervals --reference runs/table3_full-lumbarv
  python scripts/compare.py runs/table1_* --cases 20 --out page.html     with pictures, a slice viewer and distributions
  python scripts/compare.py runs/a runs/b --evaluation '*-ddim10'     these evaluations, not the fullest
  python scripts/compare.py runs/a/evaluation/test-ddim10 runs/a/evaluation/test-ddim50    two of one run
  python scripts/compare.py runs/a runs/b --losses losses.png --smooth 5     curves of what training logged, no table

Each run must have been evaluated (python evaluate.py ckpt=RUN). The floor is the score of the mean of all training
volumes, the same for every case. Parameters and TFLOP are counted without allocating the model.
"""


_OPTIONS: dict[str, dict[str, Any]] = {
    "runs": {"nargs": "+", "metavar": "RUN", "help": "a run's folder, or an evaluation's (it holds metrics.json)"},
    "--format": {"choices": list(FORMATS.values()), "default": "markdown", "help": "what to print (markdown)"},
    "--out": {
        "action": "append",
        "default": [],
        "metavar": "FILE",
        "type": Path,
        "help": "write a file instead, by its suffix: .md .tex .html .csv; may be repeated",
    },
    "--evaluation": {
        "metavar": "NAME",
        "help": "a folder under RUN/evaluation/, or a pattern of which every match is a row (the fullest evaluation "
        "with paired X-rays)",
    },
    "--metrics": {"metavar": "A,B", "help": "which metrics, in this order; or all (the headline's)"},
    "--sort": {
        "metavar": "KEY",
        "help": "best first by a metric; or by run, method, steps, volumes, seeds, parameters, tflop, seconds (as "
        "given)",
    },
    "--reference": {
        "metavar": "RUN",
        "help": "the run (its folder or name) that the others are tested against, chosen before looking at scores "
        "(the best by PSNR3D; then all pairs of runs count in the correction)",
    },
    "--test": {
        "choices": ["permutation", "wilcoxon"],
        "default": "permutation",
        "help": "paired test over patients (permutation, of the mean difference over the cases that both have)",
    },
    "--no-tests": {"action": "store_true", "help": "make no tests"},
    "--intervals": {"action": "store_true", "help": "a 95 %% interval with each score, from resampling patients"},
    "--merge-seeds": {"action": "store_true", "help": "runs that differ in trainer.seed alone as one row, mean ± sd"},
    "--names": {"metavar": "A,B", "help": "names of the rows, in the order of the runs (the runs' own)"},
    "--cases": {
        "type": Count,
        "default": 3,
        "metavar": "N",
        "help": "how many cases an HTML page shows (3: best, median and worst; further ones in the viewer alone)",
    },
    "--root": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "the prepared folder with the truth, for the pictures (that which the runs name)",
    },
    "--no-pictures": {"action": "store_true", "help": "an HTML page without volumes: small, and made at once"},
    "--losses": {
        "type": Path,
        "metavar": "FILE",
        "help": "draw what training logged (metrics.csv) instead, a panel per objective: .png .svg .pdf; needs the "
        "extra viz",
    },
    "--smooth": {"type": Count, "default": 1, "metavar": "N", "help": "losses averaged over N logged points (1)"},
    "--title": {"default": "Comparison of runs", "help": "heading of the page, caption in LaTeX"},
}


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains")

    def format_help(self) -> str:
        return in_form(super().format_help())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = _Parser(
        prog="compare.py",
        description="Compare runs: their scores beside the floor, and what they cost.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, options in _OPTIONS.items():
        if not str(options.get("action")).startswith("store_"):
            options = options | {"type": _typed(options.get("type", str), "RUN" if flag == "runs" else flag)}
        made.add_argument(flag, **options)  # type: ignore[arg-type]
    return made


def _typed(annotation: Any, flag: str) -> Callable[[str], Any]:
    """A converter of what is typed after ``flag``, as for the settings of the other commands."""

    def take(text: str) -> Any:
        number = annotation is Count and re.fullmatch(r"[+-]?\d+", text)
        return convert(annotation, int(text) if number else text, flag)

    return take


def run(arguments: Sequence[str] | None = None) -> None:
    """Compare as the command line says; prints the table or writes files."""
    asked = parser().parse_args(arguments)
    _check(asked)
    if asked.losses is not None:
        return _plot_losses(asked)
    # Imported here so that --help prints at once.
    from diffux2ct.comparison.find_runs import find_row, read_runs, rename
    from diffux2ct.comparison.runs import choose_metrics
    from diffux2ct.comparison.seeds import merge_seeds
    from diffux2ct.comparison.significance import statistics_marks
    from diffux2ct.comparison.table import build_table, sort_keys
    from diffux2ct.comparison.volumes import illustrate
    from diffux2ct.files.atomic import write_text

    runs, problems = read_runs(asked.runs, asked.evaluation)
    if asked.merge_seeds:
        runs = merge_seeds(runs)
    if asked.names is not None:
        runs = rename(runs, asked.names.split(","))
    metrics = choose_metrics(runs, None if asked.metrics is None else asked.metrics.split(","))
    further = 0 if asked.metrics else len(choose_metrics(runs, ["all"])) - len(metrics)
    if further:
        problems = [*problems, f"{further} further metrics: --metrics all, or names with commas between."]
    if asked.sort is not None and asked.sort not in sort_keys(metrics):
        raise UserError(f"--sort {asked.sort}: choose from {', '.join(sort_keys(metrics))}")
    reference = None if asked.reference is None else find_row(asked.reference, runs)
    marks = statistics_marks(
        runs,
        metrics,
        intervals=asked.intervals,
        test=None if asked.no_tests else asked.test,
        reference=None if reference is None else reference.name,
    )
    table = build_table(runs, metrics, sort=asked.sort, marks=marks, title=asked.title, problems=problems)
    pictures = partial(
        illustrate, runs, metrics, reference, num_cases=asked.cases, root=asked.root, volumes=not asked.no_pictures
    )
    if not asked.out:
        sys.stdout.write(written(table, asked.format, pictures))
    for path in asked.out:
        write_text(path, written(table, FORMATS[path.suffix], pictures))
        print(f"wrote {path}")


def _check(asked: argparse.Namespace) -> None:
    for path in asked.out:
        if path.suffix not in FORMATS:
            raise UserError(f"--out {path}: unknown suffix; choose one of {', '.join(FORMATS)}")
        if path.is_dir():
            raise UserError(f"--out {path}: is a folder; give a file")


def _plot_losses(asked: argparse.Namespace) -> None:
    from diffux2ct.viz.loss_curves import draw_curves, read_curves

    names = [Path(run).resolve().name for run in asked.runs]
    # Runs of one name in several folders are distinguished by their paths.
    labels = names if len(set(names)) == len(names) else asked.runs
    curves = {label: read_curves(run) for label, run in zip(labels, asked.runs, strict=True)}
    draw_curves(curves, asked.losses, asked.smooth)
    print(f"wrote {asked.losses}")


def written(table: Any, form: str, pictures: Callable[[], Any]) -> str:
    """A table as text of this format; ``pictures`` are drawn for a page alone, since they take a while."""
    from diffux2ct.comparison.formats import as_csv, latex, markdown, page

    if form == "html":
        return page(table, pictures())
    return {"markdown": markdown, "latex": latex, "csv": as_csv}[form](table)


def main() -> None:
    """Console entry."""
    run_main(run)
