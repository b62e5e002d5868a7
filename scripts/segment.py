"""Dice per structure on true and on reconstructed CTs: ``python scripts/segment.py --help``."""

from diffux2ct.cli.segment import main

if __name__ == "__main__":
    main()
