"""Cases: affine, spacing, size and voxel file that cannot be, or can be read after all."""

import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from tests.data.io.bad_case import case, metaimage, nifti, scan, write
from tests.data.io.dicom.dicom_files import hu_volume


@case("4-D image")
def four_dimensions(folder: Path) -> Path:
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(scan())] * 2), str(folder / "a.nii.gz"))
    return folder / "a.nii.gz"


@case("2-D image")
def two_dimensions(folder: Path) -> Path:
    return write(folder / "a.nii.gz", scan()[0])


@case("a CT with one slice")
def one_slice(folder: Path) -> Path:
    return write(folder / "a.nii.gz", scan()[:1])


@case("singular or infinite affine")
def singular_affine(folder: Path) -> Path:
    rows = struct.pack("<12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0)
    return nifti(folder / "a", {252: struct.pack("<2h", 0, 1), 280: rows})


@case("singular or infinite affine")
def zero_affine(folder: Path) -> Path:
    return nifti(folder / "a", {252: struct.pack("<2h", 0, 1), 280: bytes(48)})


@case("singular or infinite affine")
def nan_affine(folder: Path) -> Path:
    return nifti(folder / "a", {252: struct.pack("<2h", 0, 1), 280: struct.pack("<f", np.nan)})


@case(None)
def sheared_affine(folder: Path) -> Path:
    """A gantry-tilted scan, as converters write it."""
    rows = struct.pack("<12f", -1, 0, 0, 0, 0, -1, 0.5, 0, 0, 0, 2, 0)
    return nifti(folder / "a", {252: struct.pack("<2h", 0, 1), 280: rows})


@case(None, handled="has no orientation")
def nifti_without_orientation(folder: Path) -> Path:
    return nifti(folder / "a", {252: bytes(4)})


@case(None, handled="has no orientation")
def metaimage_without_orientation(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"TransformMatrix": None})


@case(r"NDims in its header is damaged; fetch or convert it again")
def metaimage_of_a_hundred_axes(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"NDims": "100"})


@case(r"NDims in its header is damaged; fetch or convert it again")
def metaimage_of_minus_one_axis(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"NDims": "3\nNDims = -1"})


@case(None, handled="has no orientation")
def nrrd_without_orientation(folder: Path) -> Path:
    path = write(folder / "a.nrrd", scan())
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior\n", b"space dimension: 3\n"))
    return path


@case(None)
def qform_of_a_rounded_quaternion(folder: Path) -> Path:
    """Its quaternion is 5e-7 too long, as single precision leaves it."""
    turn = struct.pack("<3f", 0, 0, float(np.sqrt(1 + 5e-7)))
    return nifti(folder / "a", {252: struct.pack("<2h", 1, 0), 256: turn})


@case(None, handled="sform and qform place it up to 49 mm apart; the sform is taken")
def sform_and_qform_at_two_places(folder: Path) -> Path:
    rows = struct.pack("<12f", -1, 0, 0, 49, 0, -1, 0, 0, 0, 0, 2, 0)
    turn = struct.pack("<6f", 0, 0, 1, 0, 0, 0)
    return nifti(folder / "a", {252: struct.pack("<2h", 1, 1), 256: turn, 280: rows})


@case("ElementToIntensityFunctionOffset = -24, which is not read")
def metaimage_with_an_offset_of_its_values(folder: Path) -> Path:
    fields = {"ElementToIntensityFunctionSlope": "1.0", "ElementToIntensityFunctionOffset": "-24"}
    return metaimage(
        folder / "a.mha", {"ElementType": "MET_SHORT\n" + "\n".join(f"{k} = {v}" for k, v in fields.items())}
    )


@case('space units: "cm" "cm" "cm", which is not read')
def nrrd_in_centimetres(folder: Path) -> Path:
    path = write(folder / "a.nrrd", scan())
    space = b"space: left-posterior-superior\n"
    path.write_bytes(path.read_bytes().replace(space, space + b'space units: "cm" "cm" "cm"\n'))
    return path


@case("0.001 x 0.001 x 0.002 mm; is the unit wrong")
def spacing_in_metres(folder: Path) -> Path:
    return write(folder / "a.mha", scan(), (0.001, 0.001, 0.002))


@case(None)
def nifti_in_metres_that_says_so(folder: Path) -> Path:
    image = nib.Nifti1Image(scan().T, np.diag([-0.001, -0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


@case(None)
def negative_spacing(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"ElementSpacing": "-1 1 2"})


@case("its spacing is zero or no number")
def zero_spacing(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"ElementSpacing": "0 1 2"})


@case("its spacing is zero or no number")
def nan_spacing(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"ElementSpacing": "nan 1 2"})


@case("its direction is singular")
def singular_direction(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"})


@case("50 m long; is the unit wrong|voxels of")
def fifty_metres(folder: Path) -> Path:
    return write(folder / "a.mha", hu_volume((1000, 2, 2)), (1.0, 1.0, 50.0))


@case("truncated, .* bytes; fetch|too many")
def nifti_of_huge_declared_size(folder: Path) -> Path:
    return nifti(folder / "a", {40: struct.pack("<8h", 3, 1200, 1200, 1200, 1, 1, 1, 1)})


@case("too many to read|truncated")
def gzipped_nifti_of_huge_declared_size(folder: Path) -> Path:
    path = nifti(folder / "a", {40: struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)})
    (folder / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder / "a.nii.gz"


@case("more than the file can hold")
def mha_of_huge_declared_size(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {"DimSize": "10000 10000 100"})


@case("more than the file can hold|cannot be read")
def nrrd_of_huge_declared_size(folder: Path) -> Path:
    path = write(folder / "a.nrrd", scan())
    path.write_bytes(path.read_bytes().replace(b"sizes: 10 9 8", b"sizes: 10000 9000 800"))
    return path


@case("voxels' file gone.raw is missing")
def mhd_without_raw(folder: Path) -> Path:
    return metaimage(folder / "a.mhd", {"ElementDataFile": "gone.raw"}, b"")


@case("outside its folder; put them beside the header")
def mhd_pointing_outside(folder: Path) -> Path:
    (folder / "secret.raw").write_bytes(scan().tobytes())
    (folder / "in").mkdir()
    return metaimage(folder / "in" / "a.mhd", {"ElementDataFile": "../secret.raw"}, b"")


@case("outside its folder")
def mhd_pointing_at_a_device(folder: Path) -> Path:
    return metaimage(folder / "a.mhd", {"ElementDataFile": "/dev/zero"}, b"")


@case("voxels' file pipe.raw is missing")
def mhd_pointing_at_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.raw")
    return metaimage(folder / "a.mhd", {"ElementDataFile": "pipe.raw"}, b"")


@case("voxels in many files")
def mhd_of_many_files(folder: Path) -> Path:
    return metaimage(folder / "a.mhd", {"ElementDataFile": "LIST"}, b"a.raw\nb.raw\n")


@case(None)
def mhd_with_its_raw(folder: Path) -> Path:
    (folder / "voxels 1.raw").write_bytes(scan().tobytes())
    return metaimage(folder / "a.mhd", {"ElementDataFile": "voxels 1.raw"}, b"")


@case("outside its folder")
def nrrd_pointing_outside(folder: Path) -> Path:
    text = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 10 9 8\nencoding: raw\nendian: little\n"
    (folder / "a.nhdr").write_text(text + "data file: /etc/passwd\n\n")
    return folder / "a.nhdr"
