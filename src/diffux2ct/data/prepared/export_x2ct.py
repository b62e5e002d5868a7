"""A prepared folder as X2CT-GAN's files, with its lists, for X2CT-GAN's own code or for ``dataset=x2ct``."""

from pathlib import Path

from tqdm import tqdm

from diffux2ct.data.io.x2ct.file import STORABLE, VIEWS_STORED, write_x2ct, x2ct_views
from diffux2ct.data.prepared.dataset import load_array, read_manifest
from diffux2ct.data.prepared.split import write_lists
from diffux2ct.data.prepared.writer import SPLITS, read_case
from diffux2ct.data.sources.x2ct import FILE
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import camera_preset


def export_x2ct(
    root: str | Path, out: str | Path, *, views: str = "folder", progress: bool = True
) -> tuple[dict[str, list[str]], list[str]]:
    """Write every case of a prepared folder as ``<out>/<case>/ct_xray_data.h5``, and train.txt, val.txt, test.txt.

    root: a folder that ``prepare`` made. views: "folder" writes its X-rays; "x2ct" renders the volume anew from behind
    and from the left, as X2CT-GAN's data are. Existing files are replaced. Returns case ids by part, and notes.
    Raises UserError: root is no prepared folder, h5py is missing, or a file cannot be written.
    """
    if views not in ("folder", "x2ct"):
        raise UserError(f"views={views}: choose folder (the X-rays as prepared) or x2ct (rendered as X2CT-GAN's)")
    root, out = Path(root), Path(out)
    if not (root / "manifest.csv").is_file():
        raise UserError(f"{root}: no prepared folder (manifest.csv is missing); prepare it first")
    rows = read_manifest(root)
    if out.resolve() == root.resolve():
        raise UserError(f"{out}: is the prepared folder itself; give another out=")
    split = {part: [row["case_id"] for row in rows if row["split"] == part] for part in SPLITS}
    cases = [case_id for part in SPLITS for case_id in split[part]]
    notes = []
    for case_id in tqdm(cases, desc="exporting", unit="case", disable=not progress):
        notes += _export_case(root, case_id, out, views)
    write_lists(out, split)
    return split, notes


def _export_case(root: Path, case_id: str, out: Path, views: str) -> list[str]:
    """Write one case; returns notes."""
    record = read_case(root, case_id)
    if record is None:
        raise UserError(f"{root / 'cases' / case_id}: listed in manifest.csv, but not there; prepare it again")
    folder = root / "cases" / case_id
    hu, xrays = load_array(folder, "volume"), {view: load_array(folder, view) for view in VIEWS}
    labels = load_array(folder, "labels") if (folder / "labels.npy").is_file() else None
    attrs = {"patient": record["patient"], "case": case_id, "window": record["window"]}
    attrs["labels_are_own"] = int(record.get("labels_are_own", False))
    if views == "x2ct":
        xrays = x2ct_views(hu, record["spacing"], hu.shape[0])
        camera = camera_preset("x2ct", hu.shape[0], record["spacing"]).to_dict()
        attrs |= {"camera": camera, "views": VIEWS_STORED, "projector": "joseph", "attenuation": "plastimatch"}
    else:
        attrs |= {"camera": record["camera_geometry"], "views": record.get("views", "ours")}
        attrs |= {key: record[key] for key in ("projector", "attenuation") if key in record}
        attrs |= {key: record[key] for key in ("poses", "xrays_scale") if record.get(key)}
    write_x2ct(
        out / case_id / f"{FILE}.h5", hu, record["spacing"], xrays, origin=record["origin"], labels=labels, attrs=attrs
    )
    if hu.min() < STORABLE[0] or hu.max() > STORABLE[1]:
        return [f"{folder}: HU {hu.min()} to {hu.max()} clipped to the {STORABLE[0]} to {STORABLE[1]} that it holds"]
    return []
