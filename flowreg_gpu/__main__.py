"""Run the command line as `python -m flowreg_gpu`."""

import sys

from flowreg_gpu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
