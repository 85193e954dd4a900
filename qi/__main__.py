"""`python -m qi`: the same as the command `qi`."""

from __future__ import annotations

import sys

from qi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
