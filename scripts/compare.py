"""Compare runs: ``python scripts/compare.py --help`` explains."""

from diffux2ct.cli.compare import main

if __name__ == "__main__":
    main()
