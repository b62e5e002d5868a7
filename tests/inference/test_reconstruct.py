"""X-rays to a CT, from Python: the same bytes as the command, from files, arrays or tensors."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from omegaconf import OmegaConf
from PIL import Image
from tests.cli import conftest as cli
from tests.cli.tiny_run import SIZE
from tests.cli.tiny_run import reconstruct as command
from tests.data.io.test_xray_file import ramp, write_dicom

import diffux2ct
from diffux2ct.data.io.camera_file import read_camera_files
from diffux2ct.data.io.xray_file import read_xray
from diffux2ct.errors import UserError
from diffux2ct.inference.inputs import check_cameras, model_grid, prepare_xrays
from diffux2ct.intensity import normalize_xray
from diffux2ct.types import VIEWS
from diffux2ct.viz.slices import WINDOWS, bone_centre, grey
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair

run_folder, xrays, scan = cli.run_folder, cli.xrays, cli.scan


@pytest.fixture(scope="module")
def model(run_folder):
    return diffux2ct.load_model(run_folder, device="cpu")


def reconstruct(model, xrays, **settings):
    files = [xrays / f"{view}.npy" for view in VIEWS]
    return diffux2ct.reconstruct(model, *files, precision="fp32", **settings)


def test_python_and_the_command_write_the_same_bytes(run_folder, scan, tmp_path):
    command(run_folder, scan / "drr", tmp_path / "out", "seed=3", "origin=[1,2,3]", "sampler.num_inference_steps=1")
    settings = {"seed": 3, "origin": (1, 2, 3), "sampler": {"num_inference_steps": 1}}
    ct = reconstruct(run_folder, scan / "drr", device="cpu", **settings)
    ct.save(tmp_path / "ct.nii.gz")
    assert (tmp_path / "ct.nii.gz").read_bytes() == (tmp_path / "out" / "reconstruction.nii.gz").read_bytes()
    record = json.loads((tmp_path / "out" / "reconstruct.json").read_text())
    assert {**ct.record, "seconds": 0} == {**record, "seconds": 0}


def test_files_arrays_and_tensors_of_one_xray_give_one_ct(model, xrays):
    from_files = reconstruct(model, xrays)
    arrays = [np.load(xrays / f"{view}.npy") for view in VIEWS]
    from_arrays = diffux2ct.reconstruct(model, *arrays, precision="fp32")
    tensors = [torch.from_numpy(array).double().requires_grad_() for array in arrays]
    from_tensors = diffux2ct.reconstruct(model, *tensors, precision="fp32")
    upside_down = diffux2ct.reconstruct(model, *[a[::-1] for a in arrays], precision="fp32", head_up=True)
    for other in (from_arrays, from_tensors, upside_down):
        np.testing.assert_array_equal(other.hu, from_files.hu)
    assert from_arrays.record["xrays"]["lateral"]["format"] == "array"
    assert (reconstruct(model, xrays, seed=1).hu != from_files.hu).mean() > 0.5


def test_grey_levels_of_an_array_are_read_as_a_picture_is(model, xrays):
    pixels = [np.asarray(Image.open(xrays / f"{view}.png")) for view in VIEWS]
    from_arrays = diffux2ct.reconstruct(model, *pixels, precision="fp32", line_integrals=False, head_up=True)
    from_files = diffux2ct.reconstruct(model, *[xrays / f"{view}.png" for view in VIEWS], precision="fp32")
    np.testing.assert_array_equal(from_arrays.hu, from_files.hu)


def test_the_pitch_of_an_array_counts_where_pixels_are_not_square(model, xrays):
    wide = [np.load(xrays / f"{view}.npy").repeat(2, axis=1) for view in VIEWS]
    with pytest.raises(UserError, match="would be stretched on .* until it is as wide as high"):
        diffux2ct.reconstruct(model, *wide)
    ct = diffux2ct.reconstruct(model, *wide, precision="fp32", pixel_pitch=(4, 2))
    np.testing.assert_array_equal(ct.hu, reconstruct(model, xrays).hu)


def test_consistency_brings_a_ct_s_own_xrays_to_those_given(run_folder, scan, xrays):
    model = diffux2ct.load_model(run_folder, device="cpu")
    with pytest.raises(UserError, match="consistency=4: .*xray_normalization=fixed"):
        reconstruct(model, scan / "drr", consistency=4)
    vars(model)["loaded_from"][0].cfg.dataset.xray_normalization = "fixed"
    plain, consistent = (reconstruct(model, scan / "drr", consistency=steps) for steps in (0, 4))
    assert consistent.record["sampler"]["consistency"] == 4
    assert "consistency" not in plain.record["sampler"]

    def residual(ct) -> float:
        camera = camera_preset("lumbar", SIZE, ct.spacing[0])
        images = render_pair(ct.hu, ct.spacing, camera, SIZE)
        return sum(
            float(np.abs(np.load(scan / "drr" / f"{v}.npy").reshape(SIZE, 2, SIZE, 2).mean((1, 3)) - images[v]).mean())
            for v in VIEWS
        )

    assert residual(consistent) < 0.3 * residual(plain)
    with pytest.raises(UserError, match=r"consistency=4: the camera .* unknown"):
        reconstruct(model, xrays, consistency=4)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_saved_ct_has_its_values_and_place(model, scan, tmp_path, suffix):
    ct = reconstruct(model, scan / "drr")
    ct.save(tmp_path / f"ct{suffix}")
    image = sitk.ReadImage(str(tmp_path / f"ct{suffix}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), ct.hu)
    np.testing.assert_allclose(image.GetOrigin(), ct.origin, atol=1e-4)
    np.testing.assert_allclose(image.GetSpacing(), ct.spacing)
    assert [path.name for path in tmp_path.iterdir()] == [f"ct{suffix}"]


def test_the_affine_is_that_of_nifti(model, scan, tmp_path):
    ct = reconstruct(model, scan / "drr")
    ct.save(tmp_path / "ct.nii")
    image = nib.load(tmp_path / "ct.nii")
    np.testing.assert_allclose(image.affine, ct.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj), ct.hu.T)


def test_a_notebook_shows_both_xrays_and_three_planes(model, xrays):
    ct = reconstruct(model, xrays)
    picture = ct.show()
    assert picture.size == (5 * 256 + 4 * 4, 20 + 256)
    _, y, _ = bone_centre(ct.hu)
    coronal = grey(ct.hu[::-1, y], WINDOWS["bone"])
    np.testing.assert_array_equal(np.asarray(picture)[20::16, 3 * 260 : 3 * 260 + 256 : 16], coronal)
    assert ct._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frontal": np.ones((3, 8, 8))}, "frontal X-ray: an array of shape (3, 8, 8); a radiograph is [rows, cols]"),
        ({"lateral": np.ones(8)}, "lateral X-ray: an array of shape (8,)"),
        ({"frontal": np.full((8, 8), np.nan)}, "frontal X-ray: 64 pixels are NaN"),
        ({"frontal": np.zeros((8, 8))}, "frontal X-ray: blank"),
        ({"frontal": np.eye(8)[:, :5]}, "frontal X-ray: 5 x 8 pixels (width x height) would be stretched"),
        ({"frontal": np.ones((1, 1))}, "frontal X-ray: an array of shape (1, 1)"),
        ({"frontal": np.array([["a", "b"], ["c", "d"]])}, "frontal X-ray: not an array of numbers"),
        ({"frontal": torch.eye(8)}, "lateral X-ray: the same image as frontal"),
        ({"frontal": np.eye(8) - 1}, "frontal X-ray: values down to -1"),
        ({"pixel_pitch": (1, 0)}, "pixel_pitch=[1.0, 0.0]: "),
        ({"seed": 2**70}, "give a whole number"),
        ({"weights": "raw"}, "weights=raw: no effect on a loaded model"),
        ({"device": "cpu"}, "device=cpu: no effect on a loaded model"),
        ({"precision": "fp16"}, "precision=fp16: no such choice; choose bf16 or fp32"),
        ({"origin": (1, 2)}, "origin=[1.0, 2.0]: not three numbers; give three numbers"),
        ({"ckpt": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_gets_one_line(model, change, message):
    given = {"ckpt": model, "frontal": 2 * torch.eye(8), "lateral": torch.eye(8), **change}
    with pytest.raises(UserError) as refused:
        diffux2ct.reconstruct(**given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_exchanged_radiographs_are_refused_by_their_headers(model, tmp_path):
    frontal = write_dicom(tmp_path / "f.dcm", ramp(8, 8), ViewPosition="AP", PatientOrientation=["L", "F"])
    lateral = write_dicom(tmp_path / "l.dcm", ramp(8, 8)[::-1], ViewPosition="LL")
    diffux2ct.reconstruct(model, frontal, lateral, precision="fp32")
    with pytest.raises(UserError, match=r"l\.dcm: given as frontal, but a lateral view by its own header; exchange"):
        diffux2ct.reconstruct(model, lateral, frontal)


def test_what_a_radiograph_says_of_itself_is_passed_on(model, tmp_path):
    frontal = write_dicom(tmp_path / "f.dcm", ramp(8, 8), PixelIntensityRelationshipSign=1)
    lateral = write_dicom(tmp_path / "l.dcm", ramp(8, 8)[::-1], ViewPosition="RL")
    notes = diffux2ct.reconstruct(model, frontal, lateral).record["notes"]
    assert [note.partition(": ")[0] for note in notes] == [str(frontal), str(lateral)]


def test_a_model_without_its_run_is_refused(model, xrays):
    with pytest.raises(UserError, match="give a run folder or a model of load_model"):
        reconstruct(type(model).__new__(type(model)), xrays)


def test_a_ct_is_saved_whole_in_a_known_format_or_not_at_all(model, xrays, tmp_path):
    ct = reconstruct(model, xrays)
    with pytest.raises(UserError, match="end it in .nii.gz"):
        ct.save(tmp_path / "ct.dcm")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        ct.save(tmp_path / "file" / "ct.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_version_is_read_without_torch():
    code = "import diffux2ct, sys; print(diffux2ct.__version__); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'reconstuct'"):
        diffux2ct.reconstuct  # noqa: B018


def test_pictures_of_line_integrals_meet_the_model_like_the_line_integrals(xrays):
    arrays, pictures = (
        prepare_xrays({view: read_xray(xrays / f"{view}.{suffix}") for view in VIEWS}, SIZE, "max")
        for suffix in ("npy", "png")
    )
    for view in VIEWS:
        # 16 bits over a range of 2.
        torch.testing.assert_close(pictures[view], arrays[view], rtol=0, atol=2 / 65535)


def test_xrays_meet_the_model_as_in_training(xrays):
    images = {view: read_xray(xrays / f"{view}.npy") for view in VIEWS}
    prepared = prepare_xrays(images, SIZE, "fixed")
    blocks = torch.from_numpy(images["lateral"].values.reshape(SIZE, 2, SIZE, 2).mean((1, 3)))
    torch.testing.assert_close(prepared["lateral"], normalize_xray(blocks, "fixed")[None, None])
    with pytest.raises(UserError, match="frontal.png: grey levels"):
        prepare_xrays({"frontal": read_xray(xrays / "frontal.png")}, SIZE, "fixed")


@pytest.mark.parametrize(
    ("dataset", "grid"),
    [
        ({"size": 32, "generate": {"extent_mm": 256.0}}, (32, [8.0] * 3)),
        ({"size": 64, "prepare": {"size": 128, "spacing": 2.5}}, (64, [5.0] * 3)),
        ({"size": None, "prepare": {"size": 128, "spacing": [1, 2, 3]}}, (128, [1.0, 2.0, 3.0])),
        ({"size": 32, "spacing": 3.0, "prepare": {"size": 128, "spacing": 2.5}}, (32, [3.0] * 3)),
    ],
)
def test_spacing_follows_the_training_data(tmp_path, dataset, grid):
    assert model_grid(OmegaConf.create({"root": str(tmp_path), **dataset})) == grid


def test_a_prepared_folder_knows_its_spacing_best(tmp_path):
    (tmp_path / "manifest.csv").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"format": 1, "size": 64, "spacing": [4.0, 4.0, 4.0]}))
    cfg = OmegaConf.create({"root": str(tmp_path), "size": 32, "prepare": {"size": 128, "spacing": 2.0}})
    assert model_grid(cfg) == (32, [8.0, 8.0, 8.0])


def test_a_camera_that_changed_behind_its_name_is_warned_of(scan, tmp_path):
    def notes(name, trained):
        described = {"format": 1, "size": 16, "preset": name, "camera": trained}
        (tmp_path / "dataset.json").write_text(json.dumps(described))
        (tmp_path / "manifest.csv").touch()
        dataset = OmegaConf.create({"root": str(tmp_path), "xray_normalization": "max"})
        folder = scan / ("drr" if name == "lumbar" else name)
        views = read_camera_files({view: folder / f"{view}.npy" for view in VIEWS})
        return [
            note for note in check_cameras(views, 16, [16.0] * 3, dataset) if "camera x2ct" in note or "lumbar" in note
        ]

    # Pixels of another size on the same panel are no other camera.
    assert notes("lumbar", camera_preset("lumbar", 16, 16.0).to_dict()) == []
    x2ct = camera_preset("x2ct", 16, 16.0).to_dict()
    assert notes("x2ct", x2ct) == []
    old = {key: value for key, value in x2ct.items() if key != "reverse"}
    (note,) = notes("x2ct", old)
    assert note.endswith("camera x2ct, but the model was trained on reverse=False (these: True)")
    (note,) = notes("x2ct", x2ct | {"sad": 600.0})
    assert note.endswith("sad=600.0 (these: 541.0)")
    assert notes("x2ct", None) == []


def test_relative_values_are_refused_where_absolute_ones_are_needed(scan):
    dataset = OmegaConf.create({"root": "none", "xray_normalization": "fixed", "generate": {"camera": "x2ct"}})
    views = read_camera_files({view: scan / "x2ct" / f"{view}.npy" for view in VIEWS})
    with pytest.raises(UserError, match="output=max"):
        check_cameras(views, 16, [16.0] * 3, dataset)
