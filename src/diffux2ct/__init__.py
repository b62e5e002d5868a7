"""diffux2ct: train, compare and use models that reconstruct a CT from two X-rays."""

__version__ = "0.1.0"
