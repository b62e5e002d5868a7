"""Cases: DICOM series and files."""

import os
import shutil
import struct
from pathlib import Path

import numpy as np
from tests.data.io.bad_case import case, scan
from tests.data.io.dicom.dicom_files import compress, hu_volume, slice_dataset, write_enhanced, write_series


@case("truncated or damaged")
def truncated_dicom_slice(folder: Path) -> Path:
    paths = write_series(folder / "s", scan())
    paths[3].write_bytes(paths[3].read_bytes()[:-50])
    return folder / "s"


@case("slices are missing .a gap of 5.0 mm")
def missing_slice(folder: Path) -> Path:
    write_series(folder / "s", scan())[3].unlink()
    return folder / "s"


@case("slices are missing")
def slice_of_0_bytes(folder: Path) -> Path:
    write_series(folder / "s", scan())[3].write_bytes(b"")
    return folder / "s"


@case(None, handled="1.2.11 .CT, 3 slices. skipped")
def mixed_series(folder: Path) -> Path:
    write_series(folder / "s", scan())
    write_series(folder / "s", hu_volume((3, 9, 10)), uid="1.2.11")
    return folder / "s"


@case(None, handled="8 slices at repeated positions dropped")
def duplicate_slices(folder: Path) -> Path:
    for path in write_series(folder / "s", scan()):
        shutil.copy(path, path.with_name(f"copy_{path.name}"))
    return folder / "s"


@case("modality MR, not CT")
def wrong_modality(folder: Path) -> Path:
    write_series(folder / "s", scan(), modality="MR")
    return folder / "s"


@case("modality RTSTRUCT, not CT")
def rtstruct(folder: Path) -> Path:
    (folder / "s").mkdir()
    dataset = slice_dataset(scan()[0].astype(np.uint16), modality="RTSTRUCT")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    del dataset.PixelData
    dataset.save_as(folder / "s" / "rs.dcm", enforce_file_format=True)
    return folder / "s"


@case("only the index DICOMDIR; give the folder")
def dicomdir_only(folder: Path) -> Path:
    (folder / "s").mkdir()
    dataset = slice_dataset(scan()[0].astype(np.uint16))
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    dataset.preamble = bytes(128)
    dataset.save_as(folder / "s" / "DICOMDIR")
    return folder / "s"


@case("an index .DICOMDIR., no image")
def dicomdir_itself(folder: Path) -> Path:
    return dicomdir_only(folder) / "DICOMDIR"


@case("a CT with one slice")
def dicom_of_one_slice(folder: Path) -> Path:
    write_series(folder / "s", scan()[:1])
    return folder / "s"


@case("only localizers or screen pictures")
def dicom_localizer_alone(folder: Path) -> Path:
    write_series(folder / "s", scan()[:2], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return folder / "s"


@case("only localizers or screen pictures")
def dicom_in_colour(folder: Path) -> Path:
    write_series(folder / "s", scan(), SamplesPerPixel=3)
    return folder / "s"


@case(None)
def big_endian_dicom(folder: Path) -> Path:
    write_series(folder / "s", scan(), syntax="1.2.840.10008.1.2.2")
    return folder / "s"


@case(None)
def lossless_jpeg_dicom(folder: Path) -> Path:
    write_series(folder / "s", scan(), change=lambda i, dataset: compress(dataset, "JPEG"))
    return folder / "s"


@case("no codec for .*; convert it")
def jpeg_without_codec(folder: Path) -> Path:
    def change(i, dataset):
        compress(dataset, "JPEG")
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # high-throughput JPEG 2000

    write_series(folder / "s", scan(), change=change)
    return folder / "s"


@case("cannot be decoded; fetch")
def broken_jpeg(folder: Path) -> Path:
    def change(i, dataset):
        compress(dataset, "JPEG")
        if i == 2:
            dataset.PixelData = dataset.PixelData[:40] + bytes(60)

    write_series(folder / "s", scan(), change=change)
    return folder / "s"


@case("without position, orientation or PixelSpacing")
def dicom_without_positions(folder: Path) -> Path:
    write_series(folder / "s", scan(), ImagePositionPatient=None)
    return folder / "s"


@case("no pair of perpendicular unit vectors")
def dicom_of_impossible_orientation(folder: Path) -> Path:
    write_series(folder / "s", scan(), orientation=(1, 0, 0, 1, 0, 0))
    return folder / "s"


@case("PixelSpacing 0.0 is not positive")
def dicom_of_zero_spacing(folder: Path) -> Path:
    write_series(folder / "s", scan(), PixelSpacing=[0, 0])
    return folder / "s"


@case("rescale intercept, often -1024, missing")
def dicom_without_rescale(folder: Path) -> Path:
    write_series(folder / "s", scan(), slope=None, intercept=None)
    return folder / "s"


@case("pixels are truncated or damaged|are no image of a scanner")
def dicom_of_huge_declared_size(folder: Path) -> Path:
    write_series(folder / "s", scan(), Rows=65535, Columns=65535)
    return folder / "s"


@case(None, handled="tilted by 20.0 degrees")
def gantry_tilt(folder: Path) -> Path:
    write_series(folder / "s", scan(), move=(0.0, np.tan(np.radians(20.0)), 1.0))
    return folder / "s"


@case(None, handled="interpolated to 8 at 2.50 mm")
def uneven_slices(folder: Path) -> Path:
    write_series(folder / "s", scan(), along=[0, 2.5, 5, 7.9, 10, 12.5, 15, 17.5])
    return folder / "s"


@case(None, handled="files skipped; the first: .*damaged, or not DICOM")
def garbage_among_the_slices(folder: Path) -> Path:
    write_series(folder / "s", scan())
    (folder / "s" / "extra.dcm").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "s" / "Thumbs.db").write_bytes(b"\0" * 500)
    os.mkfifo(folder / "s" / "pipe.dcm")
    return folder / "s"


@case("6 frames without positions")
def multiframe_without_positions(folder: Path) -> Path:
    stored = (hu_volume() + np.int16(1024)).astype(np.uint16)
    places = [(0.0, 0.0, 2.5 * i) for i in range(6)]
    return write_enhanced(
        folder / "s" / "a.dcm",
        stored,
        places,
        change=lambda dataset: delattr(dataset, "PerFrameFunctionalGroupsSequence"),
    )


@case(None)
def dicom_without_preamble(folder: Path) -> Path:
    for path in write_series(folder / "s", scan(), syntax="1.2.840.10008.1.2"):
        data = path.read_bytes()
        path.write_bytes(data[144 + struct.unpack_from("<I", data, 140)[0] :])
    return folder / "s"
