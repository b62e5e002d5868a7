"""Make a frontal and a lateral DRR of one CT: python scripts/synthesize_drr.py --help."""

from diffux2ct.cli.drr import main

if __name__ == "__main__":
    main()
