import base64
import io
import re
import sys
import weakref
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS
from diffux2ct.evaluation.fidelity.xray_consistency import ViewResidual
from diffux2ct.evaluation.report.cases import case_section, error_data_uri
from diffux2ct.evaluation.report.plots import distributions
from diffux2ct.evaluation.report.report import ReportCase, choose_cases, floor_panels, write_report
from diffux2ct.evaluation.report.tables import headline_figures
from diffux2ct.viz.slices import error_colours

NASTY = "<script>alert('x')</script> & \"co\""
EMBEDDED = re.compile(r"data:image/(png|jpeg);base64,[\w+/=]+|(?<=>)[\w+/=]{40,}(?=</script>)")
VOID = ("meta", "img", "br", "input")


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def case_of(name, seed, shape=(12, 14, 16), reprojections=()):
    rng = np.random.default_rng(seed)
    d, h, w = shape
    truth, made = (rng.integers(-1024, 1500, shape).astype(np.int16) for _ in range(2))
    xrays = {"frontal": rng.uniform(-1, 1, (d, w)), "lateral": rng.uniform(-1, 1, (d, h))}
    again = {
        view: ViewResidual(*(rng.uniform(0, 5, xrays[view].shape).astype(np.float32) for _ in range(2)))
        for view in reprojections
    }
    return ReportCase(name, truth, made, (2.0, 2.0, 2.0), xrays, again)


def row_of(name, value, **more):
    return {"case_id": name, "patient": "p", "psnr3d": value, "floor_psnr3d": 16.0, "seconds": 0.5} | more


def written(path, names, values, rows=None, metrics=("psnr3d",), load=case_of, **context):
    rows = rows or [row_of(name, value) for name, value in zip(names, values, strict=True)]
    summary = {"psnr3d": float(np.mean(values)), "floor": {"psnr3d": 16.0}, "seed": 7, "xray_source": "paired"}
    floor = floor_panels(np.zeros((12, 14, 16), np.int16))
    chosen = [(label, partial(load, names[index], index)) for label, index in choose_cases(rows, 3)]
    write_report(path, summary | context, rows, list(metrics), chosen, floor, title="title")
    return path.read_text(encoding="utf-8")


def test_report_is_self_contained_and_well_formed(tmp_path):
    text = written(tmp_path / "report.html", ["a", "b", "c", "d"], [20.0, 21.0, 22.0, 23.0])
    page = Page(text)
    assert page.open == []
    assert len(EMBEDDED.findall(text)) == 8 + 3 * 17 + 6 + 3 * 2
    assert not re.search(r"https?:|//\w|@import|url\(", EMBEDDED.sub("", text))
    assert not [a for _, a in page.tags if {"href", "srcset"} & set(a)]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not [script for script in page.all("script") if "src" in script]


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
    expected |= {f"Floor: {p}, {w} window" for p in ("axial", "coronal", "sagittal") for w in ("soft", "bone")}
    first = {f"b: {view} X-ray, first screen" for view in ("frontal", "lateral")}
    first |= {
        f"b: {plane} {what}, first screen"
        for plane in ("axial", "coronal", "sagittal")
        for what in ("reconstruction", "truth")
    }
    assert sorted(alts[: len(first)]) == sorted(first)  # the median case, before all else
    assert sorted(alts[len(first) :]) == sorted(expected)


def test_the_first_screen_has_five_figures_with_floor_and_interval(tmp_path):
    scores = {"psnr3d": 20.0, "psnr": 21.0, "ssim": 0.8, "ssim3d": 0.7, "mae": 60.0, "dice_bone": 0.5, "lpips": 0.2}
    rows = [{"case_id": c, "patient": c, "seconds": 1.0} | scores for c in "ab"]
    rows[1] |= {"dice_bone": None}
    text = written(
        tmp_path / "r.html", ["a", "b"], [20.0], rows, tuple(scores), protocol="paper",
        **{k: v for k, v in scores.items() if k != "psnr3d"}, floor=dict.fromkeys(scores, 16.0),
        intervals={"psnr": [20.5, 21.5]},
    )  # fmt: skip
    first, folded = text.split("<details", 1)
    titles = re.findall(r"<dt>([^<]*?)(?: <small>|</dt>)", first)
    assert titles == ["PSNR", "SSIM", "MAE", "LPIPS", "Dice bone"]
    assert "21.00 dB</b><span>95%: 20.50 dB to 21.50 dB</span><span>floor 16.00 dB; 2 cases</span>" in first
    assert "<span>floor 16.000; 1 of 2 cases</span>" in first
    assert "<table" not in first
    assert "<table class=summary>" in folded


def test_means_over_other_cases_than_the_floor_are_not_judged(tmp_path):
    rows = [row_of("a", 20.0, hd95_bone=3.0, floor_hd95_bone=9.0), row_of("b", 20.0, floor_hd95_bone=30.0)]
    text = written(
        tmp_path / "r.html", ["a", "b"], [20.0, 20.0], rows, ("psnr3d", "hd95_bone"),
        hd95_bone=3.0, floor={"psnr3d": 16.0, "hd95_bone": 19.5}, num_scored={"hd95_bone": 1},
    )  # fmt: skip
    assert "<td>-16.50 mm</td><td>1 of 2 (floor: 2)</td>" in text
    assert "read it with Dice, recall and the number of cases" in Page(text).text


def test_an_error_of_matched_structures_never_stands_without_its_share_and_cases():
    metrics = ["psnr3d", "ssim", "mae", "lpips", "implant_tip_mm", "implant_recall"]
    summary = dict.fromkeys(metrics, 1.0)
    cards = headline_figures(summary, [{"case_id": "a"} | summary], metrics)
    assert [card["title"] for card in cards][4:] == ["Implants found"]  # of five the error would be the last
    rows = [row_of(name, 20.0, hd95_bone=3.0, floor_hd95_bone=9.0) for name in "ab"] + [row_of("c", 20.0)]
    plot, whole = (distributions({"run": each}, each, ["hd95_bone"]) for each in (rows, rows[:2]))
    assert "run 2 of 3, floor 2 of 3 cases; read it with Dice bone" in plot
    assert "run 2 of 2, floor 2 of 2 cases; read it with Dice bone" in whole
    assert " cases" not in distributions({"run": rows}, rows, ["psnr3d"])


def test_slices_of_flat_voxels_keep_their_shape(tmp_path):
    def load(name, seed):
        return replace(case_of(name, seed), spacing=(1.0, 1.0, 3.0))

    text = written(tmp_path / "r.html", ["a"], [20.0], load=load)
    ratios = dict(re.findall(r'alt="a: (\w+) truth, first screen" style="aspect-ratio:([^"]*)"', text))
    assert ratios == {"coronal": "16/36", "sagittal": "14/36"}


def test_report_says_how_far_above_the_floor(tmp_path):
    page = Page(written(tmp_path / "report.html", ["a", "b"], [20.0, 21.0], run="my run", dataset="phantom"))
    for text in ("my run", "phantom", "PSNR3D", "20.50 dB", "16.00 dB", "+4.50 dB", "score without any X-ray"):
        assert text in page.text
    assert "Control experiment" not in page.text


def test_control_experiments_are_announced(tmp_path):
    page = Page(written(tmp_path / "report.html", ["a", "b"], [15.0, 15.0], xray_source="shuffled"))
    assert "Control experiment: every case was given another's X-rays" in page.text
    assert "-1.00 dB" in page.text


def test_strings_are_escaped(tmp_path):
    text = written(tmp_path / "report.html", [NASTY, "b"], [20.0, 21.0], run=NASTY, note=NASTY, more={NASTY: NASTY})
    page = Page(text)
    assert page.all("script").count({}) == 1  # the report's own; the others hold data
    assert len(page.all("script")) == 1 + 1 + 2 * 2
    assert page.text.count(NASTY) >= 5  # run, note, both halves of more, table, section: as text, not as markup
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
    assert [(label, names[index]) for label, index in choose_cases(rows, count)] == expected


def test_cases_rank_by_a_metric_in_its_own_direction():
    rows = [
        {"case_id": str(k), "lpips": value, "floor_lpips": 0.5, "mae": None, "floor_mae": 90.0}
        for k, value in enumerate((0.3, 0.1, 0.2))
    ]
    assert choose_cases(rows, 3) == [("best", 1), ("median", 2), ("worst", 0)]


def test_smaller_is_better_where_it_is_and_strangers_have_no_side(tmp_path):
    rows = [row_of(name, 20.0, mae=40.0 + k, floor_mae=60.0, odd=1.0, floor_odd=0.5) for k, name in enumerate("ab")]
    floor = {"psnr3d": 16.0, "mae": 60.0, "odd": 0.5}
    text = written(
        tmp_path / "r.html", ["a", "b"], [20.0, 20.0], rows, ("psnr3d", "mae", "odd"),
        mae=40.5, odd=1.0, floor=floor, intervals={"mae": [39.25, 41.75]},
    )  # fmt: skip
    assert "<td class=better>-19.5 HU <small>better</small></td>" in text
    assert "<td>39.2 HU to 41.8 HU</td>" in text
    assert "<td>+0.500</td>" in text
    assert "smaller is better" in Page(text).text


def test_the_protocol_is_explained_and_its_headline_marked(tmp_path):
    for name, title in (("paper", "PSNR"), ("strict", "PSNR3D")):
        rows = [row_of(c, 20.0, psnr=21.0, floor_psnr=16.0) for c in "ab"]
        text = written(
            tmp_path / "r.html", ["a", "b"], [20.0, 20.0], rows, ("psnr3d", "psnr"), protocol=name, psnr=21.0
        )
        marked = re.findall(r"<tr class=headline><th scope=row>([^<]*) <em>", text)
        assert marked == [title]
        assert f"Protocol {name}: {PROTOCOLS[name].about}. Its number to quote is {title}." in Page(text).text
    text = written(tmp_path / "r.html", ["a"], [20.0])
    assert "class=headline" not in text
    assert "number to quote" not in text


def test_what_the_truth_does_not_show_is_told_as_a_count(tmp_path):
    rows = [row_of(name, 20.0, implant_unseen=count) for name, count in (("a", 2), ("b", 0), ("c", ""))]
    text = written(tmp_path / "r.html", list("abc"), [20.0] * 3, rows, left_out={"implant_unseen": 2})
    page = Page(text)
    assert "Left out (implant_unseen): 2 in 1 case, labelled screws" in page.text
    assert [f'<td data-v="{v}.0">{v}</td>' in text for v in (2, 0)] == [True, True]
    assert text.count('<td data-v="">–</td>') == 1
    assert "left out" not in page.text.split("Summary")[0]


def test_how_intervals_were_drawn_is_told(tmp_path):
    drawn = {"confidence": 0.95, "num_resamples": 10000, "over": "patients", "seed": 0}
    text = written(tmp_path / "r.html", ["a"], [20.0], intervals={"psnr3d": [19.0, 21.0]}, bootstrap=drawn)
    assert "<td>19.00 dB to 21.00 dB</td>" in text
    assert "from 10000 bootstrap resamples of patients, seed 0." in text


def test_missing_values_are_shown_as_missing(tmp_path):
    rows = [
        row_of("a", 20.0, mae_metal=300.0, floor_mae_metal=500.0),
        row_of("b", 21.0, mae_metal="", floor_mae_metal=""),
        row_of("c", 22.0, mae_metal=None, floor_mae_metal=None),
        row_of("d", 23.0, mae_metal=float("nan"), floor_mae_metal=float("nan")),
        row_of("e", 24.0, mae_metal=310.0, floor_mae_metal=510.0),
    ]
    text = written(
        tmp_path / "r.html", list("abcde"), [20.0] * 5, rows, ("psnr3d", "mae_metal", "fid_medclip"),
        mae_metal=305.0, floor={"psnr3d": 16.0, "mae_metal": 505.0}, fid_medclip=12.0,
    )  # fmt: skip
    assert text.count('<td data-v="">–</td>') == 3
    assert "<td>505.0 HU</td><td class=better>-200.0 HU <small>better</small></td><td>2 of 5</td>" in text
    assert "<td>12.000</td><td>–</td><td>–</td><td>–</td>" in text  # of the set: no floor, no cases
    figures = text.split("<figure class=plot>")[1:]
    assert [figure.count("<circle") for figure in figures] == [2 * 5, 2 * 2]
    assert "run median 305.0 HU, from 300.0 HU to 310.0 HU" in figures[1]


def test_unavailable_metrics_are_named_with_their_command(tmp_path):
    reason = {"fid_medclip": "weights <not> found; or renamed; python fetch.py medclip"}
    text = written(tmp_path / "r.html", ["a"], [20.0], unavailable=reason)
    assert "weights &lt;not&gt; found; or renamed<br><code>python fetch.py medclip</code>" in text
    page = Page(text)
    assert "Unavailable here" in page.text
    assert "FID (MedCLIP)" in page.text
    assert "Distributions" not in page.text  # one case is none


def test_reprojections_stand_beside_the_xrays_that_were_given(tmp_path):
    load = partial(case_of, reprojections=("frontal",))
    alts = {image["alt"] for image in Page(written(tmp_path / "r.html", ["a"], [20.0], load=load)).all("img")}
    assert {f"a: frontal {what}" for what in ("X-ray", "re-projection", "X-ray difference")} < alts
    assert "a: lateral X-ray" in alts
    assert "a: lateral re-projection" not in alts


def test_error_maps_are_of_reconstruction_minus_truth():
    case = case_of("a", 0)
    brighter = replace(case, reconstruction=case.truth.astype(np.int32) + 2000)
    for row in case_section("only", brighter, {}, [], [])["rows"]:
        data = row["pictures"][-1].uri.split(",")[1]
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert (picture[..., 0] > picture[..., 2]).all()  # red: too bright


def test_error_maps_have_the_colours_of_the_bar():
    error = np.linspace(-700, 700, 300).reshape(10, 30)
    data = error_data_uri(error, 500.0).split(",")[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    assert np.abs(picture - error_colours(error, 500.0)).max() <= 2
    zero = Image.open(io.BytesIO(base64.b64decode(error_data_uri(np.zeros((3, 4)), 1.0).split(",")[1])))
    assert np.asarray(zero.convert("RGB")).tolist() == [[[255, 255, 255]] * 4] * 3


def test_one_case_at_a_time_is_in_memory(tmp_path):
    alive = []

    def load(name, seed):
        assert [ref for ref in alive if ref() is not None] == []
        case = case_of(name, seed)
        alive.append(weakref.ref(case.truth))
        return case

    written(tmp_path / "r.html", ["a", "b", "c"], [20.0, 21.0, 22.0], load=load)
    assert len(alive) == 3


def test_where_nothing_can_be_rendered_the_report_says_so_once(tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no GL here' >&2; exit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    load = partial(case_of, shape=(32, 32, 32))
    page = Page(written(tmp_path / "r.html", ["a", "b"], [20.0, 21.0], load=load))
    assert page.text.count("No volume rendering: pyvista") == 1
    assert len(page.all("img")) == 8 + 2 * 17 + 6


def test_renderings_of_truth_and_reconstruction_are_shown(tmp_path):
    hu = np.full((32, 32, 32), -1024, np.int16)
    hu[8:24, 10:20, 10:20] = 700
    text = written(
        tmp_path / "r.html", ["a"], [20.0], load=lambda name, seed: ReportCase(name, hu, hu, (8.0, 8.0, 8.0), {})
    )
    page = Page(text)
    if "No volume rendering" in page.text:
        pytest.skip(page.text[page.text.index("No volume rendering") :].splitlines()[0])
    alts = [image["alt"] for image in page.all("img") if image["src"].startswith("data:image/jpeg")]
    assert sorted(alts) == sorted(
        f"a: {what} rendered from the {view}" for what in ("truth", "reconstruction") for view in ("front", "side")
    )
