"""``python -m qi.service``: the service, as the environment sets it."""

from __future__ import annotations

import sys

from qi.errors import QiError
from qi.service.server import serve
from qi.service.settings import read_settings


def _announce(url: str) -> None:
    sys.stderr.write(f"Quantizer API at {url}\n")
    sys.stderr.flush()


def main() -> int:
    """Serves until told to stop; returns the exit code."""
    try:
        serve(read_settings(), announce=_announce)
    except QiError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
