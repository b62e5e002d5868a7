"""Plot a run's losses from its metrics.csv: ``python scripts/plot_losses.py RUN [RUN ...] --out losses.png``."""

from diffux2ct.cli.plot_losses import main

if __name__ == "__main__":
    main()
