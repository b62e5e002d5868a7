"""Export a run's model for others: ``python scripts/export_model.py --help``."""

from diffux2ct.cli.export_model import main

if __name__ == "__main__":
    main()
