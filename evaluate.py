"""Score a trained model: ``python evaluate.py --help`` explains."""

from diffux2ct.cli.evaluate import main

if __name__ == "__main__":
    main()
