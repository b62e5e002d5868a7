"""Prepare raw CT scans for training: ``python scripts/prepare_dataset.py --help``."""

from diffux2ct.cli.prepare import main

if __name__ == "__main__":
    main()
