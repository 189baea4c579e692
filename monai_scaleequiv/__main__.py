"""Entry point of ``python -m monai_scaleequiv``."""

import sys

from monai_scaleequiv.cli import main

if __name__ == "__main__":
    sys.exit(main())
