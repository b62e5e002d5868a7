"""The report's section on planted objects: a table by object, and slices through those of one case."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.planted.detection import SCORES, heading
from diffux2ct.evaluation.planted.family import PlantedObjects, Shown
from diffux2ct.evaluation.report.cases import Picture, error_picture, picture, pixel_aspect
from diffux2ct.evaluation.report.tables import number, values
from diffux2ct.viz.slices import WINDOWS, grey


def planted_section(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], planted: PlantedObjects | None
) -> dict[str, Any]:
    """Table and pictures for the template; empty without the family."""
    if planted is None:
        return {}
    lines = []
    for each in planted.objects:
        records = [metric_of(f"{planted.name}_{score}_{each.key}") for score in SCORES]
        found = [number(summary.get(record.key)) for record in records]
        cells = ["–" if value is None else m.text(value) for m, value in zip(records, found, strict=True)]
        lines.append((heading(each.key), cells, len(list(values(rows, records[0].key)))))
    titles = [title[:1].upper() + title[1:] for title, *_ in SCORES.values()]
    pictures = [(f"{shown.case_id}: {heading(shown.key).lower()}", _pictures(shown)) for shown in planted.shown]
    return {"columns": ["Object", *titles, "Cases"], "lines": lines, "pictures": pictures}


def _pictures(shown: Shown) -> list[Picture]:
    """The CT with the object and its reconstruction, each with what the object adds to it."""
    limit, pictures = max(float(shown.planted.max()), 1.0), []
    aspect = pixel_aspect("axial", shown.truth.shape, shown.spacing)
    for what, image, gain in (
        ("CT", shown.truth, shown.planted),
        ("reconstruction", shown.reconstruction, shown.difference),
    ):
        alt = f"{shown.case_id}: {what} with a planted object, {shown.key}"
        caption = f"{what[:1].upper()}{what[1:]} with it"
        pictures.append(picture(grey(image, WINDOWS["soft"]), "axial", alt, shown.spacing, caption))
        caption = f"What it adds to the {what}, ±{limit:.0f} HU"
        pictures.append(error_picture(gain, limit, f"{alt}: difference", caption, aspect))
    return pictures
