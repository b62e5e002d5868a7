import pytest

from diffux2ct.errors import UserError
from diffux2ct.training.settings import TrainerSettings


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("grad_clip", -1.0, "above 0"),
        ("ema_decay", 2, "between 0 and 1"),
        ("ema_decay", -1, "between 0 and 1"),
        ("checkpoint_every", True, "whole number"),
        ("batch_size", 0, "at least 1"),
        ("num_threads", -3, "at least 1"),
        ("precision", "fp16", "choose bf16 or fp32"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(key, value, words):
    with pytest.raises(UserError, match=rf"^trainer\.{key}={value}: .*{words}"):
        TrainerSettings(**({"max_steps": 1} | {key: value}))


def test_what_turns_something_off_is_taken():
    settings = TrainerSettings(
        max_steps=1, grad_clip=None, ema_decay=None, num_threads=None, checkpoint_every=0
    )
    assert not settings.is_due(settings.checkpoint_every, 4)
