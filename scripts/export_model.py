"""Export a run's model for others: ``python scripts/export_model.py --help``."""

from diffux2ct.cli.train import export_main

if __name__ == "__main__":
    export_main()
