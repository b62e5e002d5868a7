"""A report of a real evaluation, opened from disk in a real browser: the viewer is used as a reader would."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffux2ct.data.io.volume import read_own_ct
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.evaluation.runner import evaluate
from diffux2ct.viz.slices import WINDOWS, bone_centre, display_plane, error_colours, grey
from diffux2ct.viz.viewer import HU_OF_CODE, encode_hu

SIZE = 16


class BackProjector:
    """The mean of both X-rays smeared through the volume."""

    def reconstruct(self, xrays, *, generator=None):
        return (xrays["frontal"][:, :, :, None, :] + xrays["lateral"][:, :, :, :, None]) / 2


@pytest.fixture(scope="module")
def evaluated(phantoms, tmp_path_factory):
    """The report's file, and truth and reconstruction (HU) by case."""
    out = tmp_path_factory.mktemp("evaluated") / "run"
    dataset = PreparedDataset(phantoms, "test")
    mean = PreparedDataset(phantoms, "train").mean_volume()
    with torch.inference_mode():
        evaluate(BackProjector(), dataset, out, sampling={}, mean_volume=mean, metrics=["psnr3d", "ssim3d"])
    volumes = {}
    for case in dataset.cases:
        made = read_own_ct(out / "reconstructions" / f"{case.case_id}.nii.gz").hu
        volumes[case.case_id] = {"truth": np.load(case.path / "volume.npy"), "reconstruction": made}
    return out / "report.html", volumes


@pytest.fixture
def page(browser, evaluated):
    """The report in a window without network; whatever it complains about fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(evaluated[0].as_uri())
    page.wait_for_selector("#viewer[data-ready=true]")
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [evaluated[0].as_uri()]
    context.close()


def state(page):
    """What the viewer says that it shows: plane, window and slice (from 1)."""
    told = page.evaluate("({...document.getElementById('viewer').dataset})")
    return told["plane"], told["window"], int(told["slice"])


def shown(page, name):
    """Red, green and blue of a pane's pixels as drawn, and the slice that it says it shows."""
    told = page.evaluate(
        "name => { const c = document.getElementById('viewer-' + name); return [c.toDataURL(), c.dataset.slice]; }",
        name,
    )
    picture = Image.open(io.BytesIO(base64.b64decode(told[0].split(",")[1])))
    return np.asarray(picture.convert("RGB")).astype(int), int(told[1])


def chosen(page):
    text = page.eval_on_selector("#viewer-case", "select => select.selectedOptions[0].textContent")
    return text.rsplit(" (", 1)[0]


def check_in_step(page, volumes, window_limits):
    """All panes hold the slice that the viewer names, each of its own volume, and not another one."""
    plane, _, number = state(page)
    stored = {}
    for name in ("truth", "reconstruction"):
        pixels, told = shown(page, name)
        assert told == number
        image = display_plane(volumes[chosen(page)][name], plane, number - 1)
        stored[name] = HU_OF_CODE[encode_hu(image[None])[0]]
        expected = grey(stored[name], window_limits).astype(int)
        assert np.abs(pixels - expected[..., None]).max() <= 1
    pixels, told = shown(page, "error")
    assert told == number
    expected = error_colours(stored["reconstruction"] - stored["truth"]).astype(int)
    assert np.abs(pixels - expected).max() <= 3


def unfold(page, title):
    """Opens a folded part by a click on its heading."""
    page.locator("summary").filter(has=page.get_by_role("heading", name=title, exact=True)).click()


@pytest.mark.parametrize(("width", "columns"), [(1280, 4), (390, 2)])
def test_the_first_screen_is_the_picture_and_its_figures(page, width, columns):
    page.set_viewport_size({"width": width, "height": 800})
    panels = {}
    for picture in page.locator(".panels img").all():
        box = picture.bounding_box()
        name = picture.get_attribute("alt").split(": ")[1].removesuffix(", first screen")
        panels[name] = (round(box["x"]), round(box["y"]))
        assert box["width"] == pytest.approx(box["height"], abs=1)
        assert box["width"] >= 150
    assert len({x for x, _ in panels.values()}) == columns
    assert len(set(panels.values())) == 8
    for plane in ("axial", "coronal", "sagittal"):
        # A reconstruction stands beside or above its truth, with nothing between them.
        (x, y), (true_x, true_y) = panels[f"{plane} reconstruction"], panels[f"{plane} truth"]
        assert (x == true_x and y < true_y) if columns == 4 else (x < true_x and y == true_y)
    last = page.locator(".figures > div").last.bounding_box()
    assert width < 1280 or last["y"] + last["height"] <= 800
    assert page.locator("details[open]").count() == 0


def test_the_keyboard_scrolls_both_volumes_in_step(page, evaluated):
    volumes = evaluated[1]
    first = volumes[chosen(page)]["truth"]
    start = bone_centre(HU_OF_CODE[encode_hu(first)])
    assert start == bone_centre(first)
    page.focus("#viewer-stage")
    assert state(page) == ("axial", "bone", start[0] + 1)
    check_in_step(page, volumes, WINDOWS["bone"])
    page.keyboard.press("ArrowUp")
    assert state(page)[2] == start[0] + 2
    check_in_step(page, volumes, WINDOWS["bone"])
    for key, expected in (
        ("Home", 1), ("ArrowDown", 1), ("PageUp", 11), ("ArrowRight", 12), ("ArrowLeft", 11),
        ("PageUp", SIZE), ("PageDown", 6), ("End", SIZE), ("ArrowUp", SIZE),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert state(page)[2] == expected, key
    for key, plane, axis in (("c", "coronal", 1), ("s", "sagittal", 2), ("a", "axial", None)):
        page.keyboard.press(key)
        assert state(page)[0] == plane
        assert axis is None or state(page)[2] == start[axis] + 1
        check_in_step(page, volumes, WINDOWS["bone"])
    page.keyboard.press("1")
    assert state(page)[1] == "soft"
    check_in_step(page, volumes, WINDOWS["soft"])
    page.keyboard.press("w")
    assert state(page)[1] == "bone"
    assert f"axial slice {SIZE} of {SIZE}, bone window" in page.inner_text("#viewer-where")


def test_wheel_drag_and_slider_scroll_too(page, evaluated):
    volumes = evaluated[1]
    page.locator("#viewer-stage").scroll_into_view_if_needed()
    box = page.locator("#viewer-truth").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    _, _, start = state(page)
    top = page.evaluate("scrollY")
    for steps in (1, -1, -1):
        page.mouse.wheel(0, -100 * steps)
        start += steps
        page.wait_for_function("n => document.getElementById('viewer').dataset.slice == n", arg=start)
    assert page.evaluate("scrollY") == top  # the page stayed where it was
    check_in_step(page, volumes, WINDOWS["bone"])
    page.mouse.down()
    page.mouse.move(x, y - 12)
    page.mouse.up()
    page.mouse.move(x, y)
    assert state(page)[2] == start + 3
    check_in_step(page, volumes, WINDOWS["bone"])
    page.locator("#viewer-slice").fill("2")
    assert state(page)[2] == 2
    check_in_step(page, volumes, WINDOWS["bone"])
    # Past the end the wheel is the page's again.
    page.keyboard.press("Home")
    page.mouse.wheel(0, 100)
    page.wait_for_function("top => scrollY > top", arg=top)


def test_another_case_is_chosen_by_key_by_list_and_from_its_section(page, evaluated):
    volumes = evaluated[1]
    names = [chosen(page)]
    page.focus("#viewer-stage")
    for _ in range(2):
        page.keyboard.press("n")
        page.wait_for_selector(f"#viewer[data-ready=true][data-case='{len(names)}']")
        names.append(chosen(page))
        check_in_step(page, volumes, WINDOWS["bone"])
    assert sorted(names) == sorted(volumes)
    page.select_option("#viewer-case", "1")
    page.wait_for_selector("#viewer[data-ready=true][data-case='1']")
    assert chosen(page) == names[1]
    unfold(page, "Cases in pictures")
    page.locator("[data-open-case='2']").click()
    page.wait_for_selector("#viewer[data-ready=true][data-case='2']")
    check_in_step(page, volumes, WINDOWS["bone"])
    assert page.evaluate("document.activeElement.id") == "viewer-stage"


def test_everything_in_the_viewer_is_reached_by_tab_and_has_a_name(page):
    page.focus("#viewer-case")
    reached = []
    for _ in range(10):
        reached.append(page.evaluate("(e => e.id || e.dataset.plane || e.dataset.window)(document.activeElement)"))
        page.keyboard.press("Tab")
    assert reached[:10] == [
        "viewer-case", "axial", "coronal", "sagittal", "soft", "bone", "lung", "full", "viewer-stage", "viewer-slice",
    ]  # fmt: skip
    page.focus("button[data-plane=coronal]")
    page.keyboard.press("Enter")
    assert state(page)[0] == "coronal"
    tree = page.locator("#viewer").aria_snapshot()
    for name in ('"Slice viewer"', '"Case"', '"Slice"', '"Plane"', '"Window"'):
        assert name in tree
    assert "coronal slice" in page.get_attribute("#viewer-slice", "aria-valuetext")
    assert page.get_attribute("button[data-plane=coronal]", "aria-pressed") == "true"
    assert page.get_attribute("button[data-plane=axial]", "aria-pressed") == "false"


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_spills_out_of_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_click_on_a_heading_sorts_the_cases(page):
    def column():
        return page.eval_on_selector_all("#cases tbody tr", "rows => rows.map(r => Number(r.cells[2].dataset.v))")

    assert not page.locator("#cases").is_visible()
    unfold(page, "Cases")
    page.locator("#cases th button").nth(2).click()
    assert column() == sorted(column(), reverse=True)
    page.locator("#cases th button").nth(2).click()
    assert column() == sorted(column())
    assert len(set(column())) == 3
