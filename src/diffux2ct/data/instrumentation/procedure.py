"""Pedicle screws and rods put into a labelled CT: draw levels and sides, then plan, build, check and paint."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffux2ct.arguments import check_choice
from diffux2ct.data.instrumentation.construct import Rod, build_side
from diffux2ct.data.instrumentation.frame import Field
from diffux2ct.data.instrumentation.match import check_match, labels_on_grid, skin_depth
from diffux2ct.data.instrumentation.render import implant
from diffux2ct.data.instrumentation.settings import InstrumentSettings
from diffux2ct.data.instrumentation.shapes import rod_solid, screw_solid, tulip_top
from diffux2ct.data.instrumentation.trajectory import Screw, plan_screws, shaft_points
from diffux2ct.data.instrumentation.vertebra import centroids, measure_vertebra
from diffux2ct.data.io.ct_image import CtImage, LabelImage
from diffux2ct.data.labels import LABELS, LUMBAR, label_name, rod_label, screw_label
from diffux2ct.errors import UserError

INSIDE = 0.9  # least share of a screw's shaft that lies in its vertebra's label
SKIN_MARGIN = 3.0  # mm between any metal and the patient's skin
_VERTEBRAE = range(1, 26)
_SIDES = {1: "left", -1: "right"}
_LUMBAR_VALUES = tuple(LABELS[name] for name in LUMBAR)

Plans = dict[tuple[int, int], list[Screw]]  # (vertebra, side) -> good screws
Choice = tuple[Sequence[int], tuple[int, ...]]  # lumbar values to instrument, cranial to caudal, and sides


def instrument(
    ct: CtImage, labels: LabelImage, *, seed: int, vertebrae: Sequence[str] | None = None, **settings: Any
) -> tuple[CtImage, LabelImage, dict[str, Any]]:
    """Put pedicle screws and rods into a CT whose vertebrae are labelled.

    Args:
        ct: the scan, HU, any spacing; it is not changed.
        labels: vertebrae in the values of ``data/labels``; on any grid, brought onto the scan's by nearest label.
        seed: of all draws; the same seed gives the same bytes.
        vertebrae: for example ("L3", "L4"); None = drawn.
        settings: keys of ``InstrumentSettings``.

    Returns:
        The scan with metal, the labels on the scan's grid with a value for each screw and rod, and a record of plain
        values: ``screws`` (label, vertebra, side, entry, tip, head in mm LPS, diameter, length, margin to the bone's
        surface, gap to the canal in mm, share of the shaft inside its vertebra), ``rods`` and ``settings``. Both lists
        are empty where the draw against ``probability`` leaves the scan unchanged.

    UserError where no two neighbouring vertebrae can take screws, for labels off the scan's bones, and for invalid
    settings.
    """
    checked = InstrumentSettings.from_dict(settings)
    try:
        return _instrument(ct, labels, seed, checked, vertebrae)
    except UserError as error:
        raise UserError(f"{ct.meta['path']}: {error}" if "path" in ct.meta else str(error)) from error


def _instrument(
    ct: CtImage, labels: LabelImage, seed: int, settings: InstrumentSettings, vertebrae: Sequence[str] | None
) -> tuple[CtImage, LabelImage, dict[str, Any]]:
    grid = Field(ct.hu, np.asarray(ct.origin, np.float64), np.asarray(ct.spacing, np.float64))
    own = replace(grid, values=labels_on_grid(labels, grid))
    rng, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    record: dict[str, Any] = {"seed": seed, "settings": settings.to_dict(), "screws": [], "rods": []}
    if rng.random() >= settings.probability:
        return ct, LabelImage(own.values, ct.spacing, ct.origin), record
    check_match(grid, own.values, _LUMBAR_VALUES)
    skin = skin_depth(ct.hu, grid)
    plans = _plan(own, settings, skin, vertebrae)
    values, sides = _choose(plans, settings, vertebrae, rng)
    built: list[tuple[list[Screw], Rod]] = []
    for side in sides:
        good = [plans[value, side] for value in values if (value, side) in plans]
        screws, rod = build_side(good, own, settings.rod_diameter, rng)
        metal = np.concatenate([rod.axis, np.stack([tulip_top(screw, rod) for screw in screws])])
        if float(skin.at(metal, 1e3).min()) < SKIN_MARGIN:
            raise UserError("the rod would pierce the skin; leave this scan without implants")
        built.append((screws, rod))
    solids = []
    for screws, rod in built:
        for screw in screws:
            label = screw_label(len(record["screws"]))
            record["screws"].append({"label": label} | _describe(screw, own))
            solids.append((label, screw_solid(screw, rod)))
    for _, rod in built:
        label = rod_label(len(record["rods"]))
        record["rods"].append({"label": label} | _describe_rod(rod))
        solids.append((label, rod_solid(rod)))
    hu, painted = implant(ct.hu, own, solids, settings, noise)
    return replace(ct, hu=hu), LabelImage(painted, ct.spacing, ct.origin), record


def _plan(labels: Field, settings: InstrumentSettings, skin: Field, vertebrae: Sequence[str] | None) -> Plans:
    """Good screws of every lumbar pedicle that can take one."""
    values = _LUMBAR_VALUES if vertebrae is None else [_lumbar_value(name) for name in vertebrae]
    centres = centroids(labels, _VERTEBRAE)
    plans: Plans = {}
    for value in values:
        vertebra = measure_vertebra(labels, value, centres) if value in centres else None
        if vertebra is None:
            continue
        for pedicle in vertebra.pedicles:
            screws = [s for s in plan_screws(vertebra, pedicle, settings) if _inside(s, labels) >= INSIDE]
            if good := [s for s in screws if skin.at(s.head + 8 * s.axis, 0.0) > SKIN_MARGIN]:
                plans[value, pedicle.side] = good
    return plans


def _choose(
    plans: Plans, settings: InstrumentSettings, vertebrae: Sequence[str] | None, rng: np.random.Generator
) -> Choice:
    """Draw the vertebrae and the sides among the possible ones; the ends of a rod need a screw each."""
    options: list[Choice] = []
    for first in _LUMBAR_VALUES:
        for last in _LUMBAR_VALUES:
            sides = tuple(s for s in _SIDES if (first, s) in plans and (last, s) in plans)
            if last > first and sides:
                options.append((range(first, last + 1), sides))
    if vertebrae is not None:
        named = sorted(_lumbar_value(name) for name in vertebrae)
        options = [(v, sides) for v, sides in options if named and (v[0], v[-1]) == (named[0], named[-1])]
    if not options:
        taking = sorted({label_name(value) for value, _ in plans})
        raise UserError(
            "no two lumbar vertebrae one above the other can take pedicle screws "
            f"({', '.join(taking) if taking else 'none'} can); leave this scan without implants"
        )
    both = [(values, sides) for values, sides in options if len(sides) == 2]
    bilateral = bool(rng.random() < settings.bilateral and both)
    options = both if bilateral else options
    if vertebrae is None:
        low, high = settings.levels
        counts = sorted({len(values) - 1 for values, _ in options})
        # Where no number in the range is possible, the nearest possible one.
        allowed = [n for n in counts if low <= n <= high] or [min(counts, key=lambda n: (abs(n - low), n))]
        count = allowed[rng.integers(len(allowed))]
        options = [(values, sides) for values, sides in options if len(values) - 1 == count]
    values, sides = options[rng.integers(len(options))]
    return values, sides if bilateral else (sides[rng.integers(len(sides))],)


def _inside(screw: Screw, labels: Field) -> float:
    """Share of the shaft in its vertebra's label."""
    return float((labels.at(shaft_points(screw), 0, order=0) == screw.vertebra).mean())


def _lumbar_value(name: str) -> int:
    check_choice("vertebrae", name, LUMBAR)
    return LABELS[name]


def _describe(screw: Screw, labels: Field) -> dict[str, Any]:
    return {
        "vertebra": label_name(screw.vertebra),
        "side": _SIDES[screw.side],
        **{name: _rounded(getattr(screw, name)) for name in ("entry", "tip", "head")},
        "diameter": screw.diameter,
        "length": round(screw.length, 2),
        "margin": round(screw.margin - screw.diameter / 2, 2),
        "canal_gap": round(screw.canal_gap, 2),
        "inside": round(_inside(screw, labels), 4),
    }


def _describe_rod(rod: Rod) -> dict[str, Any]:
    last = len(rod.axis) - 1
    points = rod.axis[[*range(0, last, 20), last]]  # every 5 mm is enough to draw it again
    described = {"side": _SIDES[rod.side], "diameter": rod.diameter, "length": round(rod.length, 2)}
    return described | {"axis": [_rounded(point) for point in points]}


def _rounded(point: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in point]
