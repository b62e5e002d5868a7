import re
from html.parser import HTMLParser

import numpy as np
import pytest

from diffux2ct.evaluation.report import case_panels, choose_cases, floor_panels, write_report

NASTY = "<script>alert('x')</script> & \"co\""


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def panels_of(name, seed):
    rng = np.random.default_rng(seed)
    truth, made = (rng.integers(-1024, 1500, (12, 14, 16)).astype(np.int16) for _ in range(2))
    xrays = {"frontal": rng.uniform(-1, 1, (12, 16)), "lateral": rng.uniform(-1, 1, (12, 14))}
    return case_panels(name, truth, made, xrays)


def row_of(name, value):
    return {"case_id": name, "patient": "p", "psnr3d": value, "floor_psnr3d": 16.0, "seconds": 0.5}


def written(path, names, values, **context):
    rows = [row_of(name, value) for name, value in zip(names, values, strict=True)]
    panels = [panels_of(name, seed) for seed, name in enumerate(names)]
    summary = {
        "psnr3d": float(np.mean(values)),
        "floor": {"psnr3d": 16.0},
        "seed": 7,
        "xray_source": "paired",
    }
    floor = floor_panels(np.zeros((12, 14, 16), np.int16))
    chosen = choose_cases(rows, panels, 3)
    write_report(path, summary | context, rows, ["psnr3d"], chosen, floor, title="title")
    return path.read_text(encoding="utf-8")


def test_report_is_self_contained_and_well_formed(tmp_path):
    text = written(tmp_path / "report.html", ["a", "b", "c", "d"], [20.0, 21.0, 22.0, 23.0])
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"data:image/png;base64,[\w+/=]+", "", text))
    assert not [a for _, a in page.tags if {"href", "srcset"} & set(a)]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))


def test_report_has_the_promised_pictures(tmp_path):
    page = Page(written(tmp_path / "report.html", ["a", "b", "c", "d"], [20.0, 21.0, 22.0, 23.0]))
    alts = [image["alt"] for image in page.all("img")]
    # Per case three planes of truth and reconstruction in two windows and one error, and two X-rays; six of the floor.
    expected = {
        f"{case}: {plane} {what}"
        for case in ("d", "b", "a")
        for plane in ("axial", "coronal", "sagittal")
        for what in (
            "truth, soft window", "reconstruction, soft window",
            "truth, bone window", "reconstruction, bone window", "error",
        )
    }  # fmt: skip
    expected |= {f"{case}: {view} X-ray" for case in ("d", "b", "a") for view in ("frontal", "lateral")}
    expected |= {
        f"Floor: {p}, {w} window" for p in ("axial", "coronal", "sagittal") for w in ("soft", "bone")
    }
    assert sorted(alts) == sorted(expected)


def test_report_says_how_far_above_the_floor(tmp_path):
    page = Page(written(tmp_path / "report.html", ["a", "b"], [20.0, 21.0], run="my run", dataset="phantom"))
    for text in (
        "my run",
        "phantom",
        "PSNR3D",
        "20.50 dB",
        "16.00 dB",
        "+4.50 dB",
        "without looking at the X-rays",
    ):
        assert text in page.text
    assert "Control experiment" not in page.text


def test_control_experiments_are_announced(tmp_path):
    page = Page(written(tmp_path / "report.html", ["a", "b"], [15.0, 15.0], xray_source="shuffled"))
    assert "Control experiment: every case was given another's X-rays" in page.text
    assert "-1.00 dB" in page.text


def test_strings_are_escaped(tmp_path):
    text = written(
        tmp_path / "report.html", [NASTY, "b"], [20.0, 21.0], run=NASTY, note=NASTY, more={NASTY: NASTY}
    )
    page = Page(text)
    assert len(page.all("script")) == 1
    assert (
        page.text.count(NASTY) >= 5
    )  # run, note, both halves of more, table, section: as text, not as markup
    assert {image["alt"] for image in page.all("img")} >= {f"{NASTY}: frontal X-ray"}
    assert {cell.get("data-v") for cell in page.all("td")} >= {NASTY}


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([20.0], 3, [("only", "0")]),
        ([20.0, 22.0], 3, [("best", "1"), ("worst", "0")]),
        ([20.0, 22.0, 21.0, 19.0, 23.0], 3, [("best", "4"), ("median", "2"), ("worst", "3")]),
        ([20.0, 22.0, 21.0], 9, [("best", "1"), ("median", "2"), ("worst", "0")]),
        ([3.0, 5.0, 4.0, 2.0], 4, [("best", "1"), ("median", "0"), ("worst", "3"), ("further", "2")]),
        ([20.0, 22.0], 1, [("best", "1")]),
        ([20.0, 22.0], 0, []),
    ],
)
def test_best_median_and_worst_come_first(values, count, expected):
    names = [str(index) for index in range(len(values))]
    rows = [row_of(name, value) for name, value in zip(names, values, strict=True)]
    chosen = choose_cases(rows, [panels_of(name, 0) for name in names], count)
    assert [(label, panels.case_id) for label, panels in chosen] == expected
