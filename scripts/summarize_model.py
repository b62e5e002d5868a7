"""Count a model: ``python scripts/summarize_model.py --help`` explains."""

from diffux2ct.cli.summarize import main

if __name__ == "__main__":
    main()
