"""A comparison of real evaluations, opened from disk in a real browser."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffux2ct.cli import compare
from diffux2ct.data.io.volume import read_own_ct
from diffux2ct.viz.slices import WINDOWS, display_plane, error_colours, grey
from diffux2ct.viz.viewer import HU_OF_CODE, encode_hu

SIZE = 16
PANES = ("truth", "run0", "run1", "run2")


@pytest.fixture(scope="module")
def compared(compared_runs, phantoms, tmp_path_factory):
    """The page's file, and the volumes (HU) of each case as the panes should show them."""
    path = tmp_path_factory.mktemp("compared") / "page.html"
    compare.run([*map(str, compared_runs), "--out", str(path)])
    volumes = {}
    for folder in (phantoms / "cases").iterdir():
        made = [run / "evaluation" / "phantom-test" / "reconstructions" for run in compared_runs]
        if "test" in folder.name:
            hu = [np.load(folder / "volume.npy"), *(read_own_ct(m / f"{folder.name}.nii.gz").hu for m in made)]
            volumes[folder.name] = dict(zip(PANES, (HU_OF_CODE[encode_hu(v)] for v in hu), strict=True))
    return path, volumes


@pytest.fixture
def page(browser, compared):
    """The page in a window without network; whatever it complains about fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(compared[0].as_uri())
    page.wait_for_selector("#viewer[data-ready=true]")
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [compared[0].as_uri()]
    context.close()


def told(page):
    return page.evaluate("({...document.getElementById('viewer').dataset})")


def check_in_step(page, volumes):
    """Every pane holds the slice that the viewer names, of its own volume and of no other run's."""
    state = told(page)
    number, plane, window = int(state["slice"]), state["plane"], WINDOWS[state["window"]]
    case = page.eval_on_selector("#viewer-case", "s => s.selectedOptions[0].textContent").rsplit(" (", 1)[0]
    truth = display_plane(volumes[case]["truth"], plane, number - 1)
    for pane in PANES:
        data, drawn = page.evaluate(
            "n => { const c = document.getElementById('viewer-' + n); return [c.toDataURL(), c.dataset.slice]; }", pane
        )
        assert int(drawn) == number
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")).astype(int)
        image = display_plane(volumes[case][pane], plane, number - 1)
        if state["shown"] == "errors" and pane != "truth":
            expected = error_colours(image - truth).astype(int)
        else:
            expected = grey(image, window).astype(int)[..., None]
        assert np.abs(pixels - expected).max() <= 3, pane


def test_wheel_and_keys_scroll_all_runs_in_step(page, compared):
    volumes = compared[1]
    check_in_step(page, volumes)
    page.locator("#viewer-stage").scroll_into_view_if_needed()
    box = page.locator("#viewer-run2").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    start = int(told(page)["slice"])
    page.mouse.wheel(0, -100)
    page.wait_for_function("n => document.getElementById('viewer').dataset.slice == n", arg=start + 1)
    check_in_step(page, volumes)
    page.focus("#viewer-stage")
    for key, expected in (("ArrowUp", start + 2), ("ArrowDown", start + 1), ("Home", 1), ("PageUp", 11), ("End", SIZE)):
        page.keyboard.press(key)
        assert int(told(page)["slice"]) == expected, key
    for key in ("s", "c", "1", "n"):
        page.keyboard.press(key)
        page.wait_for_selector("#viewer[data-ready=true]")
        check_in_step(page, volumes)
    assert (told(page)["plane"], told(page)["window"], told(page)["case"]) == ("coronal", "soft", "1")


def test_a_key_and_a_button_show_errors_of_all_runs(page, compared):
    page.focus("#viewer-stage")
    page.keyboard.press("e")
    assert told(page)["shown"] == "errors"
    assert page.get_attribute("button[data-shown=errors]", "aria-pressed") == "true"
    check_in_step(page, compared[1])
    page.click("button[data-shown=images]")
    assert told(page)["shown"] == "images"
    check_in_step(page, compared[1])


def test_the_place_under_the_mouse_is_told_for_every_run(page):
    page.locator("#viewer-stage").scroll_into_view_if_needed()
    page.hover("#viewer-run1")
    text = page.inner_text("#viewer-point")
    assert [part.rsplit(" ", 2)[0] for part in text.split(", ")] == ["Truth", "half", "whole & <b>", "inverted"]


def test_a_section_opens_its_case(page):
    page.locator("[data-open-case='2']").click()
    page.wait_for_selector("#viewer[data-ready=true][data-case='2']")
    assert page.evaluate("document.activeElement.id") == "viewer-stage"


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_spills_out_of_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
