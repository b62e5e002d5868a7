"""Fetch pretrained networks for perceptual metrics: ``python scripts/fetch_weights.py --help``."""

from diffux2ct.cli.fetch_weights import main

if __name__ == "__main__":
    main()
