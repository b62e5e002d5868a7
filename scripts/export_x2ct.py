"""Export a prepared folder to X2CT-GAN's HDF5 layout: ``python scripts/export_x2ct.py --help``."""

from diffux2ct.cli.prepare import export_main as main

if __name__ == "__main__":
    main()
