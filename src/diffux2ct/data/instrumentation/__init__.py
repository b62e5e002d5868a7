"""Virtual instrumentation: pedicle screws and rods put into a CT whose vertebrae are labelled."""

from diffux2ct.data.instrumentation.procedure import instrument
from diffux2ct.data.instrumentation.settings import InstrumentSettings

__all__ = ["InstrumentSettings", "instrument"]
