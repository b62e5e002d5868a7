import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image, ImageOps
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from diffux2ct.data.io.xray_file import XrayImage, fit_xray, read_xray
from diffux2ct.errors import UserError


def ramp(rows=6, cols=4, dtype=np.uint16):
    """Every pixel differs, so that a flip or a transpose cannot hide."""
    return (np.arange(rows * cols).reshape(rows, cols) * 10).astype(dtype)


def write_dicom(path, pixels, modality="DX", photometric="MONOCHROME2", **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = modality, photometric, 1
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype(np.int16 if data.PixelRepresentation else np.uint16).tobytes()
    pydicom.dcmwrite(path, data)
    return path


def write_image(path, array, spacing=None):
    image = sitk.GetImageFromArray(array)
    if spacing is not None:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def test_npy_is_taken_as_it_is(tmp_path):
    values = ramp(dtype=np.float32) / 100
    np.save(tmp_path / "frontal.npy", values)
    image = read_xray(tmp_path / "frontal.npy")
    np.testing.assert_array_equal(image.values, values)
    assert image.values.dtype == np.float32
    assert image.is_line_integral
    assert image.pixel_pitch is None
    np.testing.assert_array_equal(read_xray(tmp_path / "frontal.npy", head_up=True).values, values[::-1])


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", np.uint8), ("png", np.uint16), ("tif", np.uint16), ("tiff", np.float32)]
)
def test_a_picture_shows_the_head_in_its_first_row(tmp_path, suffix, dtype):
    path = write_image(tmp_path / f"x.{suffix}", ramp(dtype=dtype))
    image = read_xray(path)
    np.testing.assert_array_equal(image.values, ramp()[::-1].astype(np.float32))
    assert not image.is_line_integral
    np.testing.assert_array_equal(read_xray(path, head_up=False).values, ramp().astype(np.float32))


def test_monochrome1_is_inverted_and_the_panel_pitch_wins(tmp_path):
    tags = {"ImagerPixelSpacing": [0.4, 0.2], "PixelSpacing": [0.3, 0.3]}
    bright = read_xray(write_dicom(tmp_path / "a.dcm", ramp(), **tags))
    dark = read_xray(write_dicom(tmp_path / "b.dcm", 1000 - ramp(), photometric="MONOCHROME1", **tags))
    np.testing.assert_array_equal(bright.values, ramp()[::-1].astype(np.float32))
    np.testing.assert_array_equal(dark.values, bright.values)
    assert bright.pixel_pitch == (0.4, 0.2)
    assert bright.meta["modality"] == "DX"
    no_suffix = (tmp_path / "a.dcm").rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(read_xray(no_suffix).values, bright.values)


@pytest.mark.parametrize(
    ("tags", "stored"),
    [
        ({"PixelRepresentation": 1, "photometric": "MONOCHROME1"}, 200 - ramp().astype(np.int16) * 8),
        ({"BitsStored": 16, "HighBit": 15, "photometric": "MONOCHROME1"}, 65535 - ramp() * 250),
        ({"PixelIntensityRelationshipSign": 1, "modality": "XA"}, 4000 - ramp()),
        ({"PixelIntensityRelationshipSign": 1, "photometric": "MONOCHROME1"}, 4000 - ramp()),
        ({"PixelIntensityRelationshipSign": -1, "photometric": "MONOCHROME1"}, ramp()),
        ({"PixelIntensityRelationshipSign": 1, "RescaleSlope": -2, "RescaleIntercept": 9}, 4000 - ramp()),
        ({"RescaleSlope": "1.5", "RescaleIntercept": -100}, ramp()),
        ({"WindowCenter": 5, "WindowWidth": 2, "PixelPaddingValue": 4000}, ramp()),
    ],
)
def test_bone_is_bright_as_the_file_says(tmp_path, tags, stored):
    values = read_xray(
        write_dicom(tmp_path / "a.dcm", stored.astype("<i2" if stored.dtype.kind == "i" else "<u2"), **tags)
    ).values
    assert np.corrcoef(values.ravel(), ramp()[::-1].ravel())[0, 1] == pytest.approx(1)
    assert values.min() == 0


def test_padding_of_a_detector_is_dark(tmp_path):
    stored = 3000 + ramp()
    stored[:2] = 0
    image = read_xray(write_dicom(tmp_path / "a.dcm", stored, photometric="MONOCHROME1", PixelPaddingValue=0))
    assert (image.values[-2:] == 0).all()
    assert image.values.max() == stored[2:].max() - stored[2:].min()


@pytest.mark.parametrize(
    ("directions", "turn", "view"),
    [
        (["L", "F"], lambda a: a, "frontal"),
        (["R", "F"], lambda a: a[:, ::-1], "frontal"),
        (["L", "H"], lambda a: a[::-1], "frontal"),
        (["F", "L"], lambda a: a.T, "frontal"),
        (["H", "A"], lambda a: a[::-1, ::-1].T, "lateral"),
        (["AL", "FP"], lambda a: a[:, ::-1], "lateral"),
    ],
)
def test_a_radiograph_is_turned_as_it_says(tmp_path, directions, turn, view):
    path = write_dicom(tmp_path / "a.dcm", turn(ramp()), PatientOrientation=directions, ImagerPixelSpacing=[0.4, 0.4])
    image = read_xray(path)
    np.testing.assert_array_equal(image.values, ramp()[::-1].astype(np.float32))
    assert image.meta["view"] == view
    other = "lateral" if view == "frontal" else "frontal"
    with pytest.raises(UserError, match=f"given as {other}, but a {view} view by its own header; exchange"):
        read_xray(path, view=other)


@pytest.mark.parametrize(
    ("position", "view"), [("AP", "frontal"), ("PA", "frontal"), ("LL", "lateral"), ("RL", "lateral"), ("RLO", None)]
)
def test_view_position_names_the_view(tmp_path, position, view):
    path = write_dicom(tmp_path / "a.dcm", ramp(), ViewPosition=position)
    assert read_xray(path, view=view).meta["view"] == view
    noted = position == "RL"  # a right lateral view is often shown with anterior at the right
    assert any("anterior is taken to be at the left" in note for note in read_xray(path).meta["notes"]) is noted
    contradiction = write_dicom(tmp_path / "b.dcm", ramp(), ViewPosition=position, PatientOrientation=["P", "F"])
    if view == "frontal":
        with pytest.raises(UserError, match="frontal by its ViewPosition, lateral by its PatientOrientation"):
            read_xray(contradiction)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_obeyed(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = ramp(48, 32, np.float32) / 64
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / f"x.{suffix}", exif=exif, quality=100)
    with Image.open(tmp_path / f"x.{suffix}") as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_allclose(read_xray(tmp_path / f"x.{suffix}").values, shown[::-1], atol=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_means_what_its_tags_say(tmp_path, dtype):
    values = ramp(dtype=dtype)
    tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(read_xray(tmp_path / "white.tif").values, np.float32(230) - values[::-1])
    for orientation, good in ((1, values[::-1]), (4, values), (3, None), (6, None)):
        path = tmp_path / f"{orientation}.tif"
        tifffile.imwrite(path, values, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
        if good is None:
            with pytest.raises(UserError, match=f"turned by its tag Orientation={orientation}"):
                read_xray(path)
        else:
            np.testing.assert_array_equal(read_xray(path).values, good.astype(np.float32))


def test_the_darkest_pixel_of_a_detector_is_black(tmp_path):
    image = read_xray(write_dicom(tmp_path / "a.dcm", ramp() + 700))
    assert (image.values.min(), image.values.max()) == (0.0, 230.0)
    assert image.pixel_pitch is None


@pytest.mark.parametrize(("thin", "pitch"), [(1, (3.0, 1.0)), (2, (3.0, 2.0))])
def test_one_slice_of_a_volume_format_is_turned_by_its_own_axes(tmp_path, thin, pitch):
    """A coronal or sagittal slice that was stored from superior to inferior arrives with inferior first."""
    values = ramp(dtype=np.float32)
    image = sitk.GetImageFromArray(np.expand_dims(values, thin))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / "x.nii.gz"))
    read = read_xray(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(read.values, values[::-1])
    np.testing.assert_allclose(read.pixel_pitch, pitch, rtol=1e-6)


def test_a_flat_nifti_is_a_picture(tmp_path):
    read = read_xray(write_image(tmp_path / "x.nii", ramp(dtype=np.float32), spacing=(0.5, 0.7)))
    np.testing.assert_array_equal(read.values, ramp()[::-1].astype(np.float32))
    np.testing.assert_allclose(read.pixel_pitch, (0.7, 0.5), rtol=1e-6)


def _npy(array):
    return lambda path: np.save(path, array)


def _nan():
    array = ramp(dtype=np.float32)
    array[2, 1] = np.nan
    return array


BAD = {
    "missing.png": (lambda path: None, "no such file"),
    "rgb.png": (lambda path: Image.fromarray(np.zeros((6, 4, 3), np.uint8)).save(path), "colour image"),
    "rgba.png": (lambda path: Image.fromarray(np.zeros((6, 4, 4), np.uint8)).save(path), "colour image"),
    "rgb.npy": (_npy(np.ones((6, 4, 3), np.float32)), "colour image"),
    "nan.npy": (_npy(_nan()), "1 pixels are NaN"),
    "nan.tif": (lambda path: write_image(path, _nan()), "1 pixels are NaN"),
    "blank.png": (lambda path: Image.fromarray(np.full((6, 4), 9, np.uint8)).save(path), "blank"),
    "line.npy": (_npy(np.arange(5.0)), "shape \\(5,\\)"),
    "normalised.npy": (_npy(ramp(dtype=np.float32) / 115 - 1), "never negative"),
    "grey.npy": (_npy(ramp(dtype=np.uint8)), "whole numbers up to 230 are grey levels"),
    "objects.npy": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "not a numpy array"),
    "truncated.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v"), "truncated"),
    "truncated.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "truncated"),
    "truncated.dcm": (lambda path: path.write_bytes(b"\0" * 128 + b"DICM\2"), "truncated"),
    "stretched.png": (lambda path: Image.fromarray(ramp(dtype=np.uint8)).save(path, dpi=(144, 72)), "144 x 72 pixels"),
    "stretched.tif": (lambda path: tifffile.imwrite(path, ramp(), resolution=(72, 144)), "72 x 144 pixels per inch"),
    "stretched.dcm": (lambda path: write_dicom(path, ramp(), PixelAspectRatio=["2", "1"]), "pixels of 2 x 1"),
    "notes.txt": (lambda path: path.write_text("x" * 300), "unknown kind"),
    "ct.dcm": (lambda path: write_dicom(path, ramp(), modality="CT"), "modality CT.*synthesize_drr"),
    "mr.dcm": (lambda path: write_dicom(path, ramp(), modality="MR"), "modality MR"),
    "frames.dcm": (lambda path: write_dicom(path, ramp(), NumberOfFrames=3), "3 frames"),
    "rgb.dcm": (lambda path: write_dicom(path, ramp(), photometric="PALETTE COLOR"), "colour image"),
    "axial.dcm": (lambda path: write_dicom(path, ramp(), PatientOrientation=["L", "P"]), "L/P is neither a frontal"),
    "volume.nii.gz": (lambda path: write_image(path, np.zeros((3, 6, 4), np.float32)), "3 slices"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_radiograph_is_refused_in_one_line(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_xray(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def image_of(values, pitch=None):
    return XrayImage(np.asarray(values, np.float32), pitch, True, {"path": "x.npy"})


def test_shrinking_by_a_whole_factor_takes_block_means():
    values = np.random.default_rng(0).random((12, 12))
    small = fit_xray(image_of(values, (0.5, 0.5)), 4, 4)
    np.testing.assert_allclose(small.values, values.reshape(4, 3, 4, 3).mean((1, 3)), rtol=1e-6)
    assert small.pixel_pitch == (1.5, 1.5)


@pytest.mark.parametrize(("have", "want"), [(13, 8), (100, 32), (32, 32)])
def test_shrinking_keeps_the_mean_and_a_ramp(have, want):
    rows, cols = np.mgrid[:have, :have] + 0.5
    values = 2 * rows + cols
    fitted = fit_xray(image_of(values), want, want).values
    np.testing.assert_allclose(fitted.mean(), values.mean(), rtol=1e-6)
    expected_rows, expected_cols = (np.mgrid[:want, :want] + 0.5) * have / want
    # Pixels are areas, so a pixel that is split between two carries up to 1/8 of a step a side.
    np.testing.assert_allclose(fitted, 2 * expected_rows + expected_cols, rtol=0, atol=3 / 8)


def test_growing_interpolates_linearly():
    fitted = fit_xray(image_of([[0.0, 4.0], [8.0, 12.0]]), 4, 4).values
    np.testing.assert_allclose(fitted[0], [0, 1, 3, 4], atol=1e-6)
    np.testing.assert_allclose(fitted[:, 0], [0, 2, 6, 8], atol=1e-6)


def test_a_field_of_another_shape_is_refused_not_stretched():
    with pytest.raises(UserError, match="888 x 1027 pixels .* would be stretched .*crop or pad"):
        fit_xray(image_of(np.ones((1027, 888))), 32, 32)
    # 2 : 1 in pixels, square in mm.
    assert fit_xray(image_of(ramp(8, 16, np.float32), (0.4, 0.2)), 4, 4).values.shape == (4, 4)


@pytest.mark.real
def test_a_real_localizer_picture_and_its_array_agree(shared_data):
    """The same radiograph as a picture (8 bit) and as values: correlated only if neither is flipped."""
    path = shared_data / "xray" / "acrin_nsclc042_ap_scout"
    picture = read_xray(path.with_suffix(".png"))
    values = np.load(path.with_suffix(".npy"))
    assert picture.values.shape == values.shape == (1027, 888)
    assert np.corrcoef(picture.values[::-1].ravel(), values.ravel())[0, 1] > 0.9
    assert np.corrcoef(picture.values.ravel(), values.ravel())[0, 1] < 0.9
