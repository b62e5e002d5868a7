"""diffux2ct: train, compare and use models that reconstruct a CT from two X-rays."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffux2ct.inference.reconstruct import load_model, reconstruct
    from diffux2ct.inference.reconstruction import Reconstruction

__version__ = "0.2.0"
__all__ = ["Reconstruction", "__version__", "load_model", "reconstruct"]


def __getattr__(name: str) -> Any:
    """Import ``inference`` when it is first used: reading the version must not load torch."""
    if name not in __all__:
        raise AttributeError(f"module 'diffux2ct' has no attribute '{name}'")
    from diffux2ct.inference import reconstruct

    return getattr(reconstruct, name)
