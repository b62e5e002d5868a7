"""Cases: missing, unreadable, cut short, something else than its name says; values that are no HU."""

import gzip
import os
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image
from tests.data.io.bad_case import SHAPE, case, metaimage, nifti, scan, write
from tests.data.io.dicom.dicom_files import write_series

# Missing, empty, unreadable ------------------------------------------------------------------------------------------


@case("no such file or folder; give a CT file")
def missing_file(folder: Path) -> Path:
    return folder / "gone.nii.gz"


@case("no DICOM series here; give a CT file or the folder")
def empty_folder(folder: Path) -> Path:
    (folder / "scan").mkdir()
    return folder / "scan"


@case("empty .0 bytes.; fetch")
def nifti_of_0_bytes(folder: Path) -> Path:
    (folder / "a.nii").touch()
    return folder / "a.nii"


@case("empty .0 bytes.; fetch")
def gzip_of_0_bytes(folder: Path) -> Path:
    (folder / "a.nii.gz").touch()
    return folder / "a.nii.gz"


@case("symbolic link that leads nowhere")
def symlink_loop(folder: Path) -> Path:
    (folder / "a.nii.gz").symlink_to(folder / "b.nii.gz")
    (folder / "b.nii.gz").symlink_to(folder / "a.nii.gz")
    return folder / "a.nii.gz"


@case("symbolic link that leads nowhere")
def dangling_symlink(folder: Path) -> Path:
    (folder / "a.nii.gz").symlink_to(folder / "gone.nii.gz")
    return folder / "a.nii.gz"


@case("neither a file nor a folder")
def named_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.nii.gz")
    return folder / "a.nii.gz"


@case("neither a file nor a folder")
def device(folder: Path) -> Path:
    (folder / "a.nii").symlink_to("/dev/zero")
    return folder / "a.nii"


@case("no DICOM series here; give the one folder below it")
def folder_named_as_a_file(folder: Path) -> Path:
    (folder / "a.nii.gz" / "inside").mkdir(parents=True)
    return folder / "a.nii.gz"


@case(None)
def path_with_spaces_and_unicode(folder: Path) -> Path:
    return write(folder / "größe 3 ü – CT 扫描.nii.gz", scan())


@case(None)
def dicom_in_a_path_with_spaces_and_unicode(folder: Path) -> Path:
    write_series(folder / "Müller, Jörg 扫描", scan())
    return folder / "Müller, Jörg 扫描"


# Cut short, or something else ----------------------------------------------------------------------------------------


@case("truncated")
def truncated_nifti(folder: Path) -> Path:
    path = nifti(folder / "a")
    path.write_bytes(path.read_bytes()[:1000])
    return path


@case("truncated")
def truncated_gzip(folder: Path) -> Path:
    path = write(folder / "a.nii.gz", scan())
    path.write_bytes(path.read_bytes()[:-200])
    return path


@case("truncated or damaged")
def gzip_with_a_wrong_checksum(folder: Path) -> Path:
    path = nifti(folder / "a")
    data = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    data[900] ^= 0xFF
    (folder / "b.nii.gz").write_bytes(data)
    return folder / "b.nii.gz"


@case("truncated")
def truncated_mha(folder: Path) -> Path:
    return metaimage(folder / "a.mha", {}, scan().tobytes()[:500])


@case("truncated")
def truncated_nrrd(folder: Path) -> Path:
    path = write(folder / "a.nrrd", scan())
    path.write_bytes(path.read_bytes()[:-300])
    return path


@case("a PNG picture, not a NIfTI")
def png_named_nifti(folder: Path) -> Path:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "a.png")
    return (folder / "a.png").rename(folder / "a.nii.gz")


@case("a web page or XML, not a NIfTI")
def html_named_nifti(folder: Path) -> Path:
    (folder / "a.nii.gz").write_text("<html><body>Please log in</body></html>")
    return folder / "a.nii.gz"


@case("a git-lfs pointer")
def lfs_pointer(folder: Path) -> Path:
    (folder / "a.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return folder / "a.nii.gz"


@case("a zip archive")
def zip_named_nifti(folder: Path) -> Path:
    (folder / "in").mkdir()
    write(folder / "in" / "a.nii", scan())
    shutil.make_archive(str(folder / "a"), "zip", folder / "in")
    return (folder / "a.zip").rename(folder / "a.nii")


@case(None)
def nifti_named_mha(folder: Path) -> Path:
    return nifti(folder / "a").rename(folder / "a.mha")


@case(None)
def plain_nifti_named_gz(folder: Path) -> Path:
    return nifti(folder / "a").rename(folder / "b.nii.gz")


@case(None)
def gzipped_nifti_named_nii(folder: Path) -> Path:
    return write(folder / "a.nii.gz", scan()).rename(folder / "b.nii")


@case(None)
def a_nii_beside_the_nii_gz(folder: Path) -> Path:
    """ITK's reader takes the header of one and the voxels of the other."""
    write(folder / "a.nii", np.full(SHAPE, 7, np.int16))
    return write(folder / "a.nii.gz", scan())


@case(None)
def nifti_pair(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(scan().T, np.diag([-1, -1, 2, 1])), folder / "a.hdr")
    return folder / "a.hdr"


@case("header without its voxels; put a.img beside a.hdr")
def nifti_pair_without_voxels(folder: Path) -> Path:
    path = nifti_pair(folder)
    (folder / "a.img").unlink()
    return path


@case("Analyze 7.5")
def analyze(folder: Path) -> Path:
    nib.save(nib.AnalyzeImage(scan().T, np.diag([1, 1, 2, 1])), folder / "a.hdr")
    return folder / "a.hdr"


@case("damaged gzip|truncated")
def not_a_gzip(folder: Path) -> Path:
    (folder / "a.nii.gz").write_bytes(b"\x1f\x8b\x08\0 this is not deflated")
    return folder / "a.nii.gz"


# Values --------------------------------------------------------------------------------------------------------------


@case("360 voxels are NaN or infinite; mend")
def nan_voxels(folder: Path) -> Path:
    hu = scan().astype(np.float32)
    hu[::2] = np.nan
    return write(folder / "a.nii.gz", hu)


@case("1 voxels are NaN or infinite")
def infinite_voxel(folder: Path) -> Path:
    hu = scan().astype(np.float64)
    hu[3, 3, 3] = -np.inf
    return write(folder / "a.mha", hu)


@case("is the rescale intercept, often -1024, missing")
def float_hu_plus_1024(folder: Path) -> Path:
    return write(folder / "a.nii.gz", scan().astype(np.float32) + 1024)


@case("grey levels, not HU")
def eight_bits(folder: Path) -> Path:
    return write(folder / "a.nii.gz", (scan() % 256).astype(np.uint8))


@case("span too little for HU .normalised")
def normalised_to_one(folder: Path) -> Path:
    return write(folder / "a.nrrd", scan().astype(np.float32) / 1500)


@case("not HU|grey levels")
def label_file_as_ct(folder: Path) -> Path:
    return write(folder / "a_seg.nii.gz", (scan() > 0).astype(np.uint8) * 20)


@case("values from -1000 to -1000 span too little")
def one_value(folder: Path) -> Path:
    return write(folder / "a.nii.gz", np.full(SHAPE, -1000, np.int16))


@case("cannot be HU")
def values_far_too_large(folder: Path) -> Path:
    return write(folder / "a.nii.gz", scan().astype(np.int32) * 1000)


@case(None)
def scaled_nifti(folder: Path) -> Path:
    image = nib.Nifti1Image((scan() + np.int16(1024)).T, np.diag([-1, -1, 2, 1]))
    image.header.set_slope_inter(1, -1024)
    (folder / "a.nii").write_bytes(image.to_bytes())
    data = bytearray((folder / "a.nii").read_bytes())
    data[112:120] = struct.pack("<2f", 1, -1024)
    data[352:] = (scan() + np.int16(1024)).tobytes()
    (folder / "a.nii").write_bytes(data)
    return folder / "a.nii"


@case("3 values a pixel")
def rgb_mha(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True), str(folder / "a.mha"))
    return folder / "a.mha"


@case("a colour, complex or binary image|5-D image")
def rgb_nifti(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True), str(folder / "a.nii"))
    return folder / "a.nii"


@case("a colour, complex or binary image")
def complex_nifti(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(scan().T.astype(np.complex64), np.eye(4)), folder / "a.nii")
    return folder / "a.nii"
