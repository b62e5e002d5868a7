import base64
import json
import re
import zlib

import numpy as np
import pytest

from diffux2ct.viz.viewer import (
    HU_OF_CODE,
    Pane,
    encode_hu,
    expected_size,
    next_allowance,
    pack_case,
    pack_volume,
    shrink_volume,
    stage_columns,
    viewer_html,
)

SPACING = (1.0, 2.0, 3.0)


def noise(shape, seed=0):
    """Incompressible: the worst case for the size."""
    return np.random.default_rng(seed).integers(-1024, 1501, shape).astype(np.int16)


def scans(rng, side, count):
    """Noise as a scan's, sigma 15 HU, on a plateau: what deflate leaves of it is what real scans measure."""
    names = ["truth", "reconstruction", *(f"run{k}" for k in range(2, count))][:count]
    return {name: rng.normal(40, 15, (side,) * 3).round().astype(np.int16) for name in names}


def unpack_volume(text, shape):
    """HU as a browser reads them from `pack_volume`."""
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
    return HU_OF_CODE[np.cumsum(differences, axis=0, dtype=np.uint8)]


def test_a_volume_comes_back_within_the_promised_error():
    hu = np.arange(-1024, 1504, dtype=np.int16).reshape(8, 4, 79)
    back = unpack_volume(pack_volume(hu), hu.shape)
    error = np.abs(back - np.clip(hu, -1024, 1500))
    for low, high, step in ((-1024, -200, 20.6), (-200, 300, 4.0), (300, 1504, 13.4)):
        worst = error[(hu >= low) & (hu <= high)].max()
        assert step / 2 - 1 < worst <= step / 2 + 0.01


def test_codes_are_the_nearest_and_the_ends_saturate():
    codes = encode_hu(np.array([[[-5000, -1024, -200, 0, 300, 1500, 9000]]], np.float32))
    assert codes.tolist() == [[[0, 0, 40, 90, 165, 255, 255]]]
    assert (np.diff(HU_OF_CODE) > 0).all()
    again = encode_hu(HU_OF_CODE[None, None])
    assert np.abs(again[0, 0].astype(int) - np.arange(256)).max() == 0


def test_shrinking_takes_block_means_and_keeps_what_does_not_divide():
    hu = noise((4, 6, 5))
    small = shrink_volume(hu, 2)
    assert small.shape == (2, 3, 3)
    np.testing.assert_allclose(small[1, 2, 0], hu[2:4, 4:6, 0:2].mean(), rtol=1e-6)
    np.testing.assert_allclose(small[0, 0, 2], hu[0:2, 0:2, 4].mean(), rtol=1e-6)  # the edge, repeated


def test_a_case_is_shrunken_no_more_than_its_allowance_asks():
    made = noise((16, 16, 16), 1)
    volumes = {"truth": noise((16, 16, 16)), "reconstruction": made}
    whole = pack_case("a", "best", volumes, SPACING, 10**6)
    assert (whole.shrink, whole.shape, whole.spacing) == (1, (16, 16, 16), SPACING)
    half = pack_case("a", "best", volumes, SPACING, whole.size - 1)
    assert (half.shrink, half.shape, half.spacing) == (2, (8, 8, 8), (2.0, 4.0, 6.0))
    assert half.size < whole.size / 4
    np.testing.assert_allclose(
        unpack_volume(half.volumes["reconstruction"], half.shape), shrink_volume(made, 2), atol=10.5, rtol=0
    )
    assert pack_case("a", "best", volumes, SPACING, 0).shrink == 8


@pytest.mark.parametrize(
    ("count", "side", "first", "most"), [(3, 32, [1, 1, 1], 1), (20, 32, [1, 1], 2), (20, 48, [2, 2, 2, 2], 3)]
)
def test_all_cases_fit_and_the_first_stay_sharp(count, side, first, most):
    """The budget of a report in small: 16 MB for 20 cases at 128^3, so 250 kB for as many at 32^3."""
    rng = np.random.default_rng(0)
    used, shrinks, budget = 0, [], 250_000
    for place in range(count):
        volumes = scans(rng, side, 2)
        allowance = next_allowance(budget, used, count - place, side**3)
        case = pack_case(str(place), "", volumes, SPACING, allowance)
        used += case.size
        shrinks.append(case.shrink)
    assert used <= budget
    assert shrinks[: len(first)] == first
    assert max(shrinks) == most


def test_the_expected_size_of_a_scan_is_about_right():
    rng = np.random.default_rng(0)
    for count in (2, 5):
        measured = pack_case("a", "", scans(rng, 32, count), SPACING, 10**9).size
        assert 0.7 < expected_size(32**3, count) / measured < 1.3


@pytest.mark.parametrize("num_runs", [2, 8])
def test_runs_share_the_budget_of_a_page_and_are_shrunken_alike(num_runs):
    """16 MB for three cases at 128^3, in small."""
    rng = np.random.default_rng(0)
    used, budget, packed = 0, 250_000, []
    for place in range(3):
        volumes = scans(rng, 32, num_runs + 1)
        allowance = next_allowance(budget, used, 3 - place, 32**3, len(volumes))
        packed.append(pack_case(str(place), "", volumes, SPACING, allowance))
        used += packed[-1].size
        sizes = {len(unpack_volume(t, packed[-1].shape)) for t in packed[-1].volumes.values()}
        assert sizes == {32 // packed[-1].shrink}
    assert 0.1 * budget < used <= budget
    # At a shrink of 2 all fit, and that is kept for the two cases after the first.
    most = next_allowance(90_000 * (num_runs + 1), 0, 3, 64**3, num_runs + 1)
    assert most == pytest.approx((90_000 - 2 * expected_size(32**3, 1)) * (num_runs + 1))
    assert max(case.shrink for case in packed) == 2


def test_a_pane_a_volume_and_no_more_columns_than_can_be_read():
    panes = [Pane("truth", "Truth", "truth"), *(Pane(f"run{k}", f"<{k}>", f"run{k}") for k in range(8))]
    volumes = {pane.volume: noise((4, 4, 4)) for pane in panes}
    html = viewer_html([pack_case("a", "best", volumes, SPACING, 10**6)], panes, errors_on_demand=True)
    assert "--columns:5" in html
    assert [html.count(f'id="viewer-{pane.key}"') for pane in panes] == [1] * 9
    assert [html.count(f'id="volume-0-{pane.volume}"') for pane in panes] == [1] * 9
    assert "&lt;7&gt;" in html
    assert "<7>" not in html
    assert 'data-shown="errors"' in html
    assert [stage_columns(count) for count in (3, 5, 6, 9, 20)] == [3, 5, 3, 5, 6]
    plain = viewer_html(
        [pack_case("a", "best", {n: noise((4, 4, 4)) for n in ("truth", "reconstruction")}, SPACING, 1)]
    )
    assert "data-shown" not in plain


def test_names_cannot_end_an_element():
    volumes = {name: noise((4, 4, 4)) for name in ("truth", "reconstruction")}
    nasty = "</script><b>&\"'"
    html = viewer_html([pack_case(nasty, nasty, volumes, SPACING, 10**6)])
    assert "<b>&" not in html
    meta = re.search(r'<script type="application/json" id="viewer-meta">(.*?)</script>', html)
    assert meta is not None
    assert [case["id"] for case in json.loads(meta.group(1))["cases"]] == [nasty]
