"""Reconstruct a CT from two X-rays: ``python scripts/reconstruct.py --help``."""

from diffux2ct.cli.reconstruct import main

if __name__ == "__main__":
    main()
