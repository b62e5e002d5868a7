"""A model of one X-ray, and of four: trained, scored, exported and used, from the command line's settings to files."""

import json

import numpy as np
import pytest
import torch
from tests.cli.tiny_run import composed

import diffux2ct
from diffux2ct import build
from diffux2ct.cli.evaluate import run as evaluate
from diffux2ct.cli.reconstruct import run as reconstruct
from diffux2ct.cli.train import run as train
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.load import export_model
from diffux2ct.reconstructors.cost import meta_xrays

VIEWS = {1: [0], 4: [0, 45, 90, 135]}
TINY = ["device=cpu", "precision=fp32", "num_report_cases=1", "max_cases=1", "sampler.num_inference_steps=1"]


def training(phantoms, *overrides):
    data = [f"dataset.root={phantoms}", "dataset.size=16", "++dataset.generate=null"]
    steps = ["trainer.max_steps=2", "trainer.batch_size=1", "trainer.num_workers=0", "trainer.device=cpu"]
    return composed("train", "experiment=demo", *data, *steps, "trainer.val_every=2", *overrides)


@pytest.fixture(scope="module", params=VIEWS.values(), ids=VIEWS.keys())
def trained(request, phantoms, tmp_path_factory):
    """Views, the run's folder, and the first test case's X-rays as files."""
    folder = tmp_path_factory.mktemp("views")
    more = [f"dataset.views={request.param}", "dataset.augment=true", "dataset/randomize=exposure"]
    train(training(phantoms, *more, f"run_dir={folder / 'run'}"))
    data = PreparedDataset(phantoms, "test", views=request.param)
    for view in data.views:
        np.save(folder / f"{view}.npy", data._case(0)[view].numpy())
    return request.param, folder


def test_all_that_an_evaluation_offers_takes_the_model_s_views(trained):
    views, folder = trained
    more = ["metrics.families=[distortion,xrays]"]
    if len(views) == 4:
        more = ["metrics.families=[distortion,xrays,planted]", "planted.diameters=[32]"]
        more += ["uncertainty=true", "num_samples=2"]
    evaluate(composed("evaluate", f"ckpt={folder / 'run'}", *TINY, *more))
    (made,) = (folder / "run" / "evaluation").iterdir()
    summary = json.loads((made / "metrics.json").read_text())
    for key in ("mae_soft", "mae_bone", "xray_residual_frontal", "xray_residual_lateral"):
        assert np.isfinite(summary[key])
    assert ("planted_contrast_32mm" in summary) == (len(views) == 4)
    page = (made / "report.html").read_text()
    assert "Frontal X-ray" in page
    assert ("45° X-ray" in page) == (45 in views)
    assert ("Lateral X-ray" in page) == (90 in views)
    if len(views) == 1:
        with pytest.raises(UserError, match="xray_source=swapped: this model does not take both"):
            evaluate(composed("evaluate", f"ckpt={folder / 'run'}", *TINY, "xray_source=swapped"))


def test_the_command_and_python_reconstruct_from_its_views(trained, capsys):
    views, folder = trained
    files = {angle: folder / f"{name}.npy" for angle, name in zip(VIEWS[4], _names(), strict=True) if angle in views}
    others = {angle: path for angle, path in files.items() if angle not in (0, 90)}
    words = [f"{key}={files[angle]}" for key, angle in (("frontal", 0), ("lateral", 90)) if angle in files]
    words += ["others={" + ", ".join(f"{angle}: '{path}'" for angle, path in others.items()) + "}"] if others else []
    asked = ["device=cpu", "precision=fp32", "uncertainty=true", "num_samples=2", f"out={folder / 'out'}"]
    reconstruct(composed("reconstruct", f"ckpt={folder / 'run'}", *words, *asked))
    record = json.loads((folder / "out" / "reconstruct.json").read_text())
    assert list(record["xrays"]) == [
        path.stem for path in (*[files[a] for a in (0, 90) if a in files], *others.values())
    ]
    note = "from one X-ray (frontal): depth along its rays was not seen; it is what the training bodies suggest"
    assert [line for line in record["notes"] if "X-ray" in line] == [note] * (len(views) == 1)
    assert (f"warning: {note}" in capsys.readouterr().out) == (len(views) == 1)

    model = export_model(folder / "run", folder / "model")
    named = {key: files.get(angle) for key, angle in (("frontal", 0), ("lateral", 90))}
    settings = {"others": others, "device": "cpu", "precision": "fp32"}
    ct = diffux2ct.reconstruct(model, **named, **settings)
    ct.save(folder / "ct.nii.gz")
    assert (folder / "ct.nii.gz").read_bytes() == (folder / "out" / "reconstruction.nii.gz").read_bytes()
    assert np.asarray(ct.show()).shape[1] // 256 == len(views) + 3
    wrong = np.full((16, 16), 1.0) * np.arange(16)
    if len(views) == 1:
        with pytest.raises(
            UserError, match=r"xrays: views frontal, lateral; this model takes frontal: give these and no others$"
        ):
            diffux2ct.reconstruct(model, files[0], wrong, **settings)
    else:
        with pytest.raises(
            UserError, match=r"views frontal, angle_45; this model takes frontal, angle_45, lateral, angle_135"
        ):
            diffux2ct.reconstruct(model, files[0], **(settings | {"others": {45: files[45]}}))
        with pytest.raises(UserError, match="the same image as frontal"):
            diffux2ct.reconstruct(model, files[0], files[90], **(settings | {"others": {45: files[0], 135: wrong}}))
        with pytest.raises(UserError, match=r"0 and 90 are frontal and lateral; give lateral="):
            diffux2ct.reconstruct(model, files[0], **(settings | {"others": {90: files[90]}}))


def _names():
    return ("frontal", "angle_45", "lateral", "angle_135")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=diffux2ct"], r"dataset.views=\[0, 45\]: model=diffux2ct takes frontal and lateral X-rays"),
        (["model=x_ctrsnet_like"], "model=x_ctrsnet_like takes frontal and lateral"),
        (["lifting.views=[0]"], "model=posterior_flow takes frontal X-rays"),
        (["dataset.views=[0,0]"], "give 1 to 8 different angles"),
        (["dataset.views=[]"], "give 1 to 8 different angles"),
        (["dataset.views=45"], "dataset.views=45: not a list"),
        (["dataset.views=[400]"], "dataset.views"),
    ],
)
def test_a_method_that_takes_two_views_and_angles_that_are_none_are_refused(phantoms, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(training(phantoms, "dataset.views=[0,45]", *overrides, f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_a_view_has_one_width_in_every_model(phantoms):
    """The default is the biplanar model; conditions grow with each further view."""
    lifting, unet = [], []
    for views in ([], ["dataset.views=[90]"], ["dataset.views=[0,45,90,135]"]):
        with torch.device("meta"):
            model = build.build_reconstructor(training(phantoms, *views))
        sizes = [sum(p.numel() for p in part.parameters()) for part in (model.mean_conditioning, model.mean)]
        lifting, unet = [*lifting, sizes[0]], [*unet, sizes[1]]
        xrays = meta_xrays(16, model.views)
        assert {h.shape[1] for h in model.mean_conditioning(xrays)} == set(model.mean_conditioning.channels)
    assert lifting == [2 * lifting[1], lifting[1], 4 * lifting[1]]
    assert unet[1] < unet[0] < unet[2]
