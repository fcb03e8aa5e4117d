"""`python -m vit_pytorch.cli` is `vit`."""

import sys

from vit_pytorch.cli import main

if __name__ == "__main__":
    sys.exit(main())
