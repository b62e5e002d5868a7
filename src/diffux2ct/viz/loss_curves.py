"""Curves of a training log (metrics.csv), a panel per objective. Needs matplotlib (extra ``viz``)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffux2ct.errors import UserError

Curves = dict[str, tuple[list[int], list[float]]]  # by name: steps, values


def read_curves(run: str | Path) -> Curves:
    """The scalars of a run's metrics.csv by name. UserError where there are none."""
    path = Path(run) / "metrics.csv" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise UserError(f"{run}: no metrics.csv here; give the folder of a run that train.py wrote")
    curves: Curves = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["step", "name", "value"]:
            raise UserError(f"{path}: not a table of step, name, value; give a metrics.csv that train.py wrote")
        try:
            for row in reader:
                steps, values = curves.setdefault(row["name"], ([], []))
                steps.append(int(row["step"]))
                values.append(float(row["value"]))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: line {reader.line_num} is not step, name, value; delete it") from error
    if not curves:
        raise UserError(f"{path}: nothing was logged yet; lower trainer.log_every or train longer")
    return curves


def panels(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by panel: ``<objective>/<loss>`` by objective; gradient norms, and names without a slash, apart."""
    by_panel: dict[str, list[str]] = {}
    for name in names:
        objective, slash, loss = name.partition("/")
        panel = "gradient norm" if loss == "grad_norm" else objective if slash else name
        by_panel.setdefault(panel, []).append(name)
    return by_panel


def draw_curves(runs: Mapping[str, Curves], out: str | Path, smooth: int = 1) -> None:
    """Write a picture: a panel per objective, a line per loss and run; ``smooth`` averages over so many points.

    UserError without matplotlib, and for an unknown file type.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is not installed; pip install -c constraints.txt -e '.[viz]'") from error
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    by_panel = panels(names)
    figure = Figure(figsize=(9, 2.4 * len(by_panel)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    rows = figure.subplots(len(by_panel), squeeze=False)[:, 0]
    for axes, (panel, members) in zip(rows, by_panel.items(), strict=True):
        for run, curves in runs.items():
            for name in (name for name in members if name in curves):
                steps, values = curves[name]
                label = name.removeprefix(f"{panel}/")
                axes.plot(steps, _smoothed(values, smooth), lw=1.2, label=f"{run}: {label}" if len(runs) > 1 else label)
        axes.set_title(panel, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xlabel("step")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        canvas.print_figure(out, dpi=110)
    except ValueError as error:
        raise UserError(f"{out}: {error}; end it in .png, .svg or .pdf") from error


def _smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over up to ``width`` points before and at each one."""
    total = np.cumsum([0.0, *values])
    first = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    return (total[1:] - total[first]) / (np.arange(1, len(values) + 1) - first)
