"""Train a model: ``python train.py --help`` explains."""

from diffux2ct.cli.train import main

if __name__ == "__main__":
    main()
