import sys
from importlib.util import find_spec

import numpy as np
import pytest

from diffux2ct.viz.rendering import BONE_COLOUR, MARGIN, RenderingUnavailable, render_case

SHAPE, SPACING = (40, 40, 40), (2.0, 2.0, 2.0)


def ball(hu, centre, radius, value):
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    hu[np.linalg.norm(grid - np.array(centre), axis=-1) <= radius] = value
    return hu


def soft():
    return np.full(SHAPE, 40, np.int16)


@pytest.fixture(scope="module")
def pictures():
    """Truth: bone that is superior, anterior and left, with metal in it. Reconstruction: bone at the opposite place."""
    truth = ball(ball(soft(), (30, 9, 31), 7, 700), (30, 9, 31), 3, 1500)
    made = ball(soft(), (9, 30, 8), 7, 700)
    try:
        return render_case(truth, made, SPACING, size=80)
    except RenderingUnavailable as reason:
        pytest.skip(f"nothing can be rendered here: {reason}")


def centre_of(mask):
    rows, columns = np.nonzero(mask)
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


def lit(picture):
    return picture.astype(int).max(axis=-1) > 60


def red(picture):
    r, g, b = np.moveaxis(picture.astype(int), -1, 0)
    return (r > 60) & (r > 1.5 * g) & (r > 1.5 * b)


def test_pictures_are_turned_as_a_radiologist_expects(pictures):
    # From the front the patient's left (high x) is on the right; from the side anterior (low y) is on the left.
    for what, (z, y, x) in (("truth", (30, 9, 31)), ("reconstruction", (9, 30, 8))):
        for view, across in (("front", x), ("side", y)):
            expected = [0.5 - 0.5 / 80 + offset / (40 * MARGIN) for offset in (19.5 - z, across - 19.5)]
            np.testing.assert_allclose(centre_of(lit(pictures[what][view])), expected, atol=0.01)


def test_a_ball_is_as_large_as_it_is(pictures):
    for views in pictures.values():
        for picture in views.values():
            assert picture.shape == (80, 80, 3)
            width = lit(picture).any(axis=0).sum()
            assert 26 <= width <= 32  # 14 to 15 voxels of 40, over 80 pixels


def test_metal_shines_red_through_bone_and_bone_is_ivory(pictures):
    for view in ("front", "side"):
        truth, made = pictures["truth"][view], pictures["reconstruction"][view]
        assert 70 < red(truth).sum() < 125  # 25 to 29 voxels of 3.8 pixels each, cut off at their centres at the edge
        assert not red(made).any()
        ivory = made[lit(made)].astype(float).mean(axis=0)
        np.testing.assert_allclose(ivory / ivory.max(), np.array(BONE_COLOUR) / max(BONE_COLOUR), atol=0.06)


def test_an_empty_volume_gives_an_empty_picture(pictures):
    views = render_case(soft(), ball(soft(), (20, 20, 20), 5, 700), SPACING, size=40)
    assert all((picture == picture[0, 0]).all() for picture in views["truth"].values())
    assert all((picture != picture[0, 0]).any() for picture in views["reconstruction"].values())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "signal 11"),
        ("echo noise >&2; echo 'no GL here' >&2; exit 3", "no GL here"),
        ("exit 0", "exit code 0"),
    ],
)
def test_a_renderer_that_dies_becomes_one_line(tmp_path, monkeypatch, script, message):
    if find_spec("pyvista") is None:
        pytest.skip("pyvista is not installed")
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RenderingUnavailable, match=message) as caught:
        render_case(soft(), soft(), SPACING)
    assert "\n" not in str(caught.value)
