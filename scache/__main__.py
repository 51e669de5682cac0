"""Entry point of ``python -m scache``, the same as the command ``scache``."""

import sys

from scache.cli import main

if __name__ == "__main__":
    sys.exit(main())
