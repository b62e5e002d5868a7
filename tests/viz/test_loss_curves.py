import numpy as np
import pytest
from PIL import Image

from diffux2ct.errors import UserError
from diffux2ct.viz.loss_curves import _smoothed, draw_curves, panels, read_curves


def test_a_run_is_read_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    text = "step,name,value\n10,generator/mse,0.5\n10,discriminator/real,1\n20,generator/mse,0.25\n"
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    curves = read_curves(tmp_path)
    assert curves == {"generator/mse": ([10, 20], [0.5, 0.25]), "discriminator/real": ([10], [1.0])}
    draw_curves({"run": curves}, tmp_path / "a" / "losses.png")
    image = np.asarray(Image.open(tmp_path / "a" / "losses.png").convert("RGB"))
    assert ((image == (31, 119, 180)).all(axis=-1)).sum() > 50  # a blue line
    with pytest.raises(UserError, match=r"losses.xyz.*\.png"):
        draw_curves({"run": curves}, tmp_path / "losses.xyz")


def test_panels_are_objectives():
    names = ["g/mse", "g/grad_norm", "d/real", "d/grad_norm", "samples_per_second"]
    assert panels(names) == {
        "g": ["g/mse"],
        "gradient norm": ["g/grad_norm", "d/grad_norm"],
        "d": ["d/real"],
        "samples_per_second": ["samples_per_second"],
    }


def test_smoothing_averages_what_came_before():
    assert _smoothed([4.0, 2.0, 6.0, 0.0], 2).tolist() == [4.0, 3.0, 4.0, 3.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no metrics.csv"),
        ("a,b\n1,2\n", "not a table"),
        ("step,name,value\n", "nothing was logged"),
        ("step,name,value\nx,y,z\n", "line 2"),
        ("step,name,value\n1,y\n", "line 2"),
    ],
)
def test_what_is_no_log_gets_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as error:
        read_curves(tmp_path)
    assert "\n" not in str(error.value)
