import numpy as np
import pytest
from torch.testing import assert_close

from diffux2ct.evaluation.metric import find_metric
from diffux2ct.evaluation.planted.detection import LEAST_HU, LEAST_MATCHED, Template, centroid, detectability


def test_dprime_and_auc_by_hand():
    elsewhere = np.arange(10.0)  # mean 4.5, standard deviation 3.0277
    assert_close(detectability(10.0, elsewhere), (5.5 / elsewhere.std(ddof=1), 1.0))
    assert detectability(4.0, elsewhere)[1] == 0.45  # four below, one equal
    assert detectability(3.0, np.zeros(10)) == (3.0 / LEAST_HU, 1.0)
    assert detectability(3.0, np.zeros(LEAST_MATCHED - 1)) == (None, None)


def test_a_template_that_is_moved_out_of_the_volume_is_left_out():
    shares = np.zeros((4, 4, 4))
    shares[1, 1, 1:3] = 1.0, 0.5
    difference = np.arange(64.0).reshape(4, 4, 4)
    means = Template.of(shares).mean(difference, np.array([[0, 0, 0], [1, 0, 0], [-2, 0, 0], [0, 0, 2]]))
    assert_close(means, np.array([21 + 1 / 3, 37 + 1 / 3]))


def test_the_centroid_is_of_what_exceeds_half_the_maximum():
    difference = np.zeros((8, 8, 8))
    difference[2, 3, 4:6] = 40.0
    difference[7] = 20.0
    assert_close(centroid(difference, 2.0), np.array([9.0, 6.0, 4.0]))
    assert centroid(difference / 100, 2.0) is None


@pytest.mark.parametrize("key", ["planted_auc_10mm", "planted_error_mm_screw", "planted_contrast_12.5mm"])
def test_every_key_has_a_record(key):
    record = find_metric(key)
    assert record is not None
    assert record.beside in ("", "planted_contrast_screw")
    assert find_metric("planted_auc_rod") is None
