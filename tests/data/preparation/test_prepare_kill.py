"""Kill the preparation at random moments and start it again: the folder's bytes are those of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

KILLS = int(os.environ.get("DIFFUX2CT_KILLS", "3"))

# One process imports once and forks: each child prepares, so that a kill costs no start-up. It has used no threads.
SCRIPT = """
import os, random, shutil, signal, sys, time
import scipy.ndimage
import torch
from pathlib import Path
from diffux2ct.data.preparation.prepare import PrepareSettings, prepare
from diffux2ct.data.io.volume import use_threads
from diffux2ct.viz.contact_sheet import write_contact_sheets

torch.set_num_threads(1)
use_threads(1)
raw, work, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
os.chdir(work)

def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

def start(out):
    pid = os.fork()
    if pid == 0:
        try:
            settings = PrepareSettings(32, 4.0, remove_couch=True, pose_jitter={"degrees": 2, "mm": 2})
            options = {"crops": 3, "split": {"test": 1}, "labels": "ours", "workers": 1, "progress": False}
            prepare("set", raw, out, settings=settings, **options)
            write_contact_sheets(out)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

began = time.monotonic()
assert os.waitpid(start(Path("whole")), 0)[1] == 0
took = time.monotonic() - began
expected = files(Path("whole"))
rng = random.Random(0)
cut = []
for index in range(kills):
    out = Path(f"killed{index}")
    pid = start(out)
    if index % 2:  # at any time of the run
        time.sleep(rng.uniform(0.02, 1.0) * took)
    else:  # while cases are written: after a certain one, finished or not
        enough, deadline = rng.randint(1, 12), time.monotonic() + 30
        while len(list(out.glob("cases/*"))) < enough and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    cut.append((len(list(out.glob("cases/p*"))), (out / "dataset.json").exists(), os.WIFSIGNALED(status)))
    assert os.waitpid(start(out), 0)[1] == 0
    now = files(out)
    assert now.keys() == expected.keys(), (sorted(now.keys() ^ expected.keys()), cut)
    assert now == expected, ([name for name in now if now[name] != expected[name]], cut)
    shutil.rmtree(out)
print(f"{kills} kills in {took:.2f} s of work: cases then there", [count for count, _, _ in cut], flush=True)
print("killed", sum(signaled for _, _, signaled in cut), "files", len(expected))
"""


def write_scan(path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    hu = generator.normal(-1000, 10, (40, 60, 60)).round().clip(-1024).astype(np.int16)
    hu[3:-3, 10:44, 8:52] = generator.normal(40, 20, (34, 34, 44))
    hu[:, 50, 5:55] = 200
    labels = np.zeros(hu.shape, np.uint8)
    for level in range(5):
        labels[5 + 6 * level : 10 + 6 * level, 30:36, 26:34] = 24 - level
    hu[labels > 0] = 500
    for name, array in ((path, hu), (path.with_name(f"{path.name[:2]}_label.nii.gz"), labels)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((4.0, 4.0, 4.0))
        sitk.WriteImage(image, str(name))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed in range(4):
        write_scan(raw / f"p{seed}.nii.gz", seed)
    (raw / "p9.nii.gz").write_bytes((raw / "p2.nii.gz").read_bytes())  # the same scan under another name
    (raw / "p7.nii.gz").write_bytes((raw / "p2.nii.gz").read_bytes()[:1000])  # and one that is cut short
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(raw), str(tmp_path), str(KILLS)],
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    # Some were really stopped in the middle; the last moments may lie after the end.
    assert int(done.stdout.split("killed ")[1].split()[0]) >= KILLS // 2
