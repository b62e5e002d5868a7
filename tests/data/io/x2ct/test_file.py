"""One of X2CT-GAN's files, in and out."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.data.io.x2ct.x2ct_files import SIZE, STEP, body, published

from diffux2ct.data.io.x2ct.file import average_to, ct_of, read_x2ct, to_8bit, write_x2ct, x2ct_views
from diffux2ct.types import VIEWS


def test_reads_the_published_file(tmp_path: Path) -> None:
    hu = body()
    scan = read_x2ct(published(tmp_path / "a/ct_xray_data.h5", hu))
    np.testing.assert_array_equal(scan.hu, hu)
    assert scan.spacing == (STEP, STEP, STEP)
    assert scan.origin == (-150.0, -150.0, -150.0)
    assert scan.header.scales is None  # lost
    assert scan.xrays is not None
    views = x2ct_views(hu, (STEP,) * 3, SIZE)
    for view in VIEWS:
        np.testing.assert_allclose(scan.xrays[view], views[view] / views[view].max(), atol=1.01 / 255)
    ct = ct_of(scan, tmp_path / "a/ct_xray_data.h5")
    np.testing.assert_array_equal(ct.hu, hu)
    assert (ct.spacing, ct.meta["format"], ct.meta["size"]) == ((STEP,) * 3, "x2ct", [SIZE] * 3)
    assert ct.centre == (0.0, 0.0, 0.0)
    # Its 256 voxels a side are averaged down, the field of view stays.
    half = read_x2ct(tmp_path / "a/ct_xray_data.h5", size=SIZE // 2)
    assert half.spacing == (2 * STEP,) * 3
    assert half.origin == (-140.0, -140.0, -140.0)  # the cube stays where it was
    blocks = hu.reshape(8, 2, 8, 2, 8, 2).mean((1, 3, 5))
    np.testing.assert_allclose(half.hu, blocks, atol=0.51)
    assert half.xrays is not None
    for view in VIEWS:
        assert half.xrays[view].shape == (8, 8)
        blocks = (views[view] / views[view].max()).reshape(8, 2, 8, 2).mean((1, 3))
        np.testing.assert_allclose(half.xrays[view], blocks, atol=1.01 / 255)


def test_the_size_in_mm_is_the_cube_s_whatever_its_voxels(tmp_path: Path) -> None:
    path = published(tmp_path / "a/ct_xray_data.h5", body())
    with h5py.File(path, "a") as file:
        del file["ori_size"], file["spacing"]
        file["ori_size"], file["spacing"] = np.int64(200), [1.6, 1.6, 1.6]
    assert read_x2ct(path).spacing == (STEP, STEP, STEP)
    with h5py.File(path, "a") as file:
        del file["ori_size"]
        file["ori_size"] = np.array([100, 100, 100])
    scan = read_x2ct(path)
    assert scan.spacing == (10.0, 10.0, 10.0)
    assert scan.origin == (-75.0, -75.0, -75.0)


def test_its_views_are_from_behind_and_from_the_left() -> None:
    """Two bones on one line of sight's depth: the one nearer the source is drawn larger, farther from the middle."""
    hu = np.full((32, 32, 32), -1024, np.int16)
    hu[24, 28, 20] = hu[8, 3, 20] = 3000  # superior: posterior; inferior: anterior; both to the Left
    frontal = x2ct_views(hu, (10.0,) * 3, 64)["frontal"]
    back, front = np.argmax(frontal[32:].max(0)), np.argmax(frontal[:32].max(0))
    assert back > front > 32
    hu = np.full((32, 32, 32), -1024, np.int16)
    hu[24, 20, 28] = hu[8, 20, 3] = 3000  # superior: Left; inferior: Right; both posterior
    lateral = x2ct_views(hu, (10.0,) * 3, 64)["lateral"]
    left, right = np.argmax(lateral[32:].max(0)), np.argmax(lateral[:32].max(0))
    assert left > right > 32


def test_write_then_read_gives_the_same(tmp_path: Path) -> None:
    hu, views = body(), x2ct_views(body(), (STEP,) * 3, SIZE)
    labels = (hu > 1000).astype(np.uint8)
    path = write_x2ct(
        tmp_path / "c/ct_xray_data.h5", hu, (STEP,) * 3, views, origin=(1, 2, 3), labels=labels, attrs={"patient": "p"}
    )
    # As X2CT-GAN's code sees it: all from the top, air 0, grey levels by each image's own maximum, mm by two numbers.
    with h5py.File(path) as file:
        np.testing.assert_array_equal(np.asarray(file["ct"])[::-1], hu + 1024)
        np.testing.assert_array_equal(np.asarray(file["labels"])[::-1], labels)
        assert float(file["ori_size"][()]) * np.asarray(file["spacing"]) == pytest.approx([320.0] * 3)
        for name, view in (("xray1", "frontal"), ("xray2", "lateral")):
            image = np.asarray(file[name])
            assert (image.dtype, image.max()) == (np.uint8, 255)
            np.testing.assert_allclose(image[::-1] / 255, views[view] / views[view].max(), atol=0.51 / 255)
    scan = read_x2ct(path)
    np.testing.assert_array_equal(scan.hu, hu)
    np.testing.assert_array_equal(scan.labels, labels)
    assert (scan.spacing, scan.origin, scan.header.attrs["patient"]) == ((STEP,) * 3, (1.0, 2.0, 3.0), "p")
    assert scan.xrays is not None
    assert scan.header.scales is not None
    for view in VIEWS:
        scale = scan.header.scales[view]
        np.testing.assert_allclose(scan.xrays[view] * scale, views[view], atol=0.501 * scale / 255)
        eight, again = to_8bit(views[view]), to_8bit(scan.xrays[view] * scale)
        np.testing.assert_array_equal(eight[0], again[0])
    assert sorted(p.name for p in path.parent.iterdir()) == ["ct_xray_data.h5"]


def test_average_keeps_the_mean_and_the_place() -> None:
    ramp = np.arange(20.0)
    average = average_to(ramp, 8, Path("x"))
    assert average.mean() == pytest.approx(ramp.mean())
    # Cells are 2.5 wide; within a voxel the value is constant, which is worth up to a twentieth here.
    np.testing.assert_allclose(average, 2.5 * (np.arange(8) + 0.5) - 0.5, atol=0.0501)
