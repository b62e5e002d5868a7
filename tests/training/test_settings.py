import pytest

from diffux2ct.arguments import read
from diffux2ct.errors import UserError
from diffux2ct.training.settings import TrainerSettings


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("grad_clip", -1.0, "above 0"),
        ("ema_decay", 2, "between 0 and 1"),
        ("ema_decay", -1, "between 0 and 1"),
        ("checkpoint_every", "maybe", "whole number"),
        ("channels_last", "maybe", "true or false"),
        ("max_steps", "abc", "whole number"),
        ("seed", -1, "at least 0"),
        ("device", "mps", "auto, cpu, cuda or cuda:N"),
        ("batch_size", 0, "at least 1"),
        ("num_threads", -3, "at least 1"),
        ("precision", "fp16", "choose bf16 or fp32 .did you mean bf16"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(key, value, words):
    with pytest.raises(UserError, match=rf"^trainer\.{key}={value}: .*{words}"):
        read(TrainerSettings, {"max_steps": 1} | {key: value}, "trainer.")


def test_what_turns_something_off_is_taken():
    settings = TrainerSettings(max_steps=1, grad_clip=None, ema_decay=None, num_threads=None, checkpoint_every=0)
    assert not settings.is_due(settings.checkpoint_every, 4)
