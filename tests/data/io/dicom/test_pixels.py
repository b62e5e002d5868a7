"""Compression, rescale, padding, and the frames of enhanced CT."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from tests.data.io.dicom.dicom_files import (
    UPRIGHT,
    compress,
    hu_volume,
    list_series,
    refused,
    write_enhanced,
    write_series,
)

from diffux2ct.data.io.volume import read_ct

ALONG = [2.5 * i for i in range(6)]


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_every_plain_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    write_series(tmp_path, hu_volume(), syntax=syntax)
    np.testing.assert_array_equal(read_ct(tmp_path).hu, hu_volume())


@pytest.mark.parametrize("compressor", ["RLE", "JPEG", "JPEG2000"])
def test_lossless_compression_is_undone(tmp_path: Path, compressor: str) -> None:
    paths = write_series(tmp_path, hu_volume(), change=lambda i, dataset: compress(dataset, compressor))
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_ct(tmp_path).hu, hu_volume())


@pytest.mark.parametrize("compressor", [None, "RLE", "JPEG", "JPEG2000"])
def test_hu_do_not_depend_on_how_pixels_are_displayed(tmp_path: Path, compressor: str | None) -> None:
    """MONOCHROME1, a window and a VOI LUT are for the screen: plain and compressed files have the same HU."""

    def change(i: int, dataset: pydicom.Dataset) -> None:
        if compressor:
            compress(dataset, compressor)
        dataset.PhotometricInterpretation, dataset.PresentationLUTShape = "MONOCHROME1", "INVERSE"
        dataset.WindowCenter, dataset.WindowWidth = 40, 80
        item = pydicom.Dataset()
        item.LUTDescriptor, item.LUTData = [4, 0, 16], np.arange(4, dtype="<u2")[::-1].tobytes()
        dataset.VOILUTSequence = [item]

    write_series(tmp_path, hu_volume(), change=change)
    np.testing.assert_array_equal(read_ct(tmp_path).hu, hu_volume())


def test_overlays_in_unused_bits_are_no_hu(tmp_path: Path) -> None:
    """12 of 16 bits are stored; the other 4 may hold an overlay, or the sign once more."""

    def change(i: int, dataset: pydicom.Dataset) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16) | np.uint16(0x9000)
        dataset.PixelData, dataset.BitsStored, dataset.HighBit = stored.tobytes(), 12, 11

    write_series(tmp_path / "a", hu_volume(), change=change)
    np.testing.assert_array_equal(read_ct(tmp_path / "a").hu, hu_volume())
    write_series(tmp_path / "b", hu_volume(), BitsStored=12, HighBit=15)
    refused(tmp_path / "b", "bits 4 to 15 of a pixel")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("JPGExtended.dcm", "JPEG-lossy.dcm"),  # 12 bit
    ],
)
def test_files_of_other_encoders(tmp_path: Path, name: str, plain: str) -> None:
    """pydicom's own samples, made a CT of two slices: pixels as in the uncompressed twin."""

    def as_ct(sample: str, folder: Path) -> np.ndarray:
        folder.mkdir()
        for i in range(2):
            path = get_testdata_file(sample, download=False)
            assert isinstance(path, str)
            dataset = pydicom.dcmread(path)
            dataset.Modality, dataset.SeriesInstanceUID, dataset.InstanceNumber = "CT", "1.2.3", i
            dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, i], list(UPRIGHT)
            dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept = [1, 1], 1, -1024
            if "NumberOfFrames" in dataset:
                del dataset.NumberOfFrames
            dataset.save_as(folder / f"{i}.dcm")
        return read_ct(folder).hu

    np.testing.assert_array_equal(as_ct(name, tmp_path / "a"), as_ct(plain, tmp_path / "b"))


def test_without_a_codec_the_compression_is_named(tmp_path: Path) -> None:
    def claim(syntax: str):
        def change(i, dataset):
            compress(dataset, "JPEG2000")
            dataset.file_meta.TransferSyntaxUID = syntax

        return change

    write_series(tmp_path / "ht", hu_volume(), change=claim("1.2.840.10008.1.2.4.201"))
    write_series(tmp_path / "mpeg", hu_volume(), change=claim("1.2.840.10008.1.2.4.102"))
    write_series(tmp_path / "deflated", hu_volume(), syntax="1.2.840.10008.1.2.1.99")
    refused(tmp_path / "ht", "no codec for High-Throughput JPEG 2000 .*convert it")
    refused(tmp_path / "mpeg", "no codec for MPEG-4 .*convert it")
    refused(tmp_path / "deflated", "deflated transfer syntax; convert it")


def test_rescale_may_differ_from_slice_to_slice(tmp_path: Path) -> None:
    hu = hu_volume((6, 8, 8)).astype(np.int32) // 4 * 4

    def change(i, dataset):
        slope, intercept = [(1, -1024), (2, -2000), (4, -1000)][i % 3]
        stored = (hu[i] - intercept) // slope
        dataset.PixelData = stored.astype("<u2").tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept

    write_series(tmp_path / "whole", hu.astype(np.int16), change=change)
    np.testing.assert_array_equal(read_ct(tmp_path / "whole").hu, hu)
    write_series(tmp_path / "broken", hu.astype(np.int16), slope=0.5, intercept=-1000.25)
    np.testing.assert_allclose(read_ct(tmp_path / "broken").hu, np.maximum((hu + 1024) * 0.5 - 1000.25, -1024))
    write_series(tmp_path / "zero", hu.astype(np.int16), slope=0)
    refused(tmp_path / "zero", "RescaleSlope 0")
    write_series(tmp_path / "none", hu.astype(np.int16), slope=None, intercept=None)
    refused(tmp_path / "none", "rescale intercept, often -1024, missing")
    write_series(
        tmp_path / "some",
        hu.astype(np.int16),
        change=lambda i, d: i == 2 and (delattr(d, "RescaleSlope"), delattr(d, "RescaleIntercept")),
    )
    assert "1.2.10_004.dcm" in refused(tmp_path / "some", "no RescaleSlope and RescaleIntercept")
    write_series(tmp_path / "iodine", hu.astype(np.int16), RescaleType="MGML")
    refused(tmp_path / "iodine", "values in MGML .RescaleType., not HU")


def test_twelve_bits_with_rubbish_above_them(tmp_path: Path) -> None:
    """Signed and unsigned 12-bit pixels in 16-bit words whose upper bits hold an overlay."""
    hu = hu_volume((4, 8, 8))
    for signed in (True, False):
        folder = tmp_path / str(signed)

        def change(i, dataset, signed=signed):
            value = hu[i].astype(np.int32) + (0 if signed else 1024)
            words = (value & 0x0FFF) | (0xA000 if i % 2 else 0)
            dataset.PixelData = words.astype("<u2").tobytes()
            dataset.BitsStored, dataset.HighBit = 12, 11
            dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), 0 if signed else -1024

        write_series(folder, hu, change=change)
        np.testing.assert_array_equal(read_ct(folder).hu, hu)


def test_padding_is_air(tmp_path: Path) -> None:
    hu = hu_volume((4, 8, 8))
    hu[:, 0] = hu[:, -1] = 30_000  # a field of view: rows outside it hold 31024 as stored
    expected = hu.copy()
    expected[:, [0, -1]] = -1024
    write_series(tmp_path / "high", hu, PixelPaddingValue=31024)
    np.testing.assert_array_equal(read_ct(tmp_path / "high").hu, expected)
    write_series(tmp_path / "range", hu, PixelPaddingValue=31000, PixelPaddingRangeLimit=32000)
    np.testing.assert_array_equal(read_ct(tmp_path / "range").hu, expected)
    # Water, where it is no field of view, stays water, even if the header calls its value padding.
    hu = np.random.default_rng(0).integers(-520, -480, (4, 8, 8)).astype(np.int16)
    hu[:, 2:6, 2:6] = 0
    hu[:, 3, 3] = 200
    write_series(tmp_path / "water", hu, PixelPaddingValue=1024)
    np.testing.assert_array_equal(read_ct(tmp_path / "water").hu, hu)
    # The same bits read as unsigned, as many scanners write -2000.
    hu = np.full((4, 8, 8), 40, np.int16)
    hu[:, 0], hu[:, 4] = -2000, 900

    def change(i, dataset):
        dataset.PixelData, dataset.PixelRepresentation = hu[i].astype("<i2").tobytes(), 1
        dataset.RescaleIntercept = 1000
        dataset.add_new(0x00280120, "US", 63536)

    write_series(tmp_path / "unsigned", hu, change=change)
    ct = read_ct(tmp_path / "unsigned")
    assert (ct.hu[:, 0].max(), ct.hu[0, 4, 0]) == (-1024, 1900)


def test_enhanced_ct(tmp_path: Path) -> None:
    """Frames out of order, each with its own rescale, and a localizer among them."""
    hu = hu_volume((6, 9, 10)).astype(np.int32) // 2 * 2
    order, frames, positions, rescales = [3, 1, 0, 5, 4, 2], [], [], []
    for n in order:
        slope, intercept = ((1, -1024), (2, -1000))[n % 2]
        frames.append((hu[n] - intercept) // slope)
        positions.append((-10.0, -20.0, 30.0 + 2.5 * n))
        rescales.append((slope, intercept))
    path = write_enhanced(tmp_path / "e" / "IM0", np.stack(frames).astype(np.uint16), positions, rescales=rescales)
    ct = read_ct(path)
    np.testing.assert_array_equal(ct.hu, hu)
    np.testing.assert_allclose((*ct.spacing, *ct.origin), (0.8, 0.9, 2.5, -10, -20, 30), atol=1e-6)
    assert [(s.modality, s.num_slices) for s in list_series(tmp_path / "e")] == [("CT", 6)]
    stored = (hu[:, :, :] + 1024).astype(np.uint16)
    upright = [(-10.0, -20.0, 30.0 + 2.5 * n) for n in range(6)]
    write_enhanced(tmp_path / "l" / "a", stored, upright, localizer=5)
    ct = read_ct(tmp_path / "l")
    np.testing.assert_array_equal(ct.hu, hu[:5])
    assert "1 localizers" in ct.meta["notes"][0]


def test_odd_enhanced_files(tmp_path: Path) -> None:
    stored = (hu_volume() + np.int16(1024)).astype(np.uint16)
    places = [(-10.0, -20.0, z) for z in ALONG]

    def rle(dataset):
        dataset.compress("1.2.840.10008.1.2.5")

    np.testing.assert_array_equal(
        read_ct(write_enhanced(tmp_path / "rle" / "a", stored, places, change=rle)).hu, hu_volume()
    )
    for name, change, message in (
        ("plain", lambda d: delattr(d, "PerFrameFunctionalGroupsSequence"), "6 frames without positions"),
        ("count", lambda d: setattr(d, "NumberOfFrames", 9), "9 frames, but 6 are described"),
        ("short", lambda d: setattr(d, "PixelData", d.PixelData[:400]), "truncated or damaged"),
    ):
        refused(write_enhanced(tmp_path / name / "a", stored, places, change=change), message)
    gap = [(0.0, 0.0, z) for z in (0, 2.5, 5, 12.5, 15, 17.5)]
    refused(write_enhanced(tmp_path / "gap" / "a", stored, gap), "slices are missing")
    tilted = [(0.0, 0.6 * z, z) for z in np.arange(6) * 10.0]
    assert "tilted by 31.0" in read_ct(write_enhanced(tmp_path / "t" / "a", stored, tilted)).meta["notes"][0]
