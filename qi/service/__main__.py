"""``python -m qi.service``: the service, as the environment sets it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qi.errors import QiError
from qi.service.server import serve
from qi.service.settings import read_settings

_USAGE = """usage: python -m qi.service

Serves as environment variables say: QI_API_HOST, QI_API_PORT, QI_API_KEYS, QI_API_STORE, ... (see qi.service.settings.Settings).
`qi serve` takes arguments.
"""


def _announce(url: str) -> None:
    sys.stderr.write(f"Quantizer API at {url}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] = ()) -> int:
    """Serves until told to stop; returns the exit code."""
    if arguments:
        wanted = set(arguments) <= {"-h", "--help"}
        (sys.stdout if wanted else sys.stderr).write(_USAGE)
        return 0 if wanted else 2
    try:
        serve(read_settings(), announce=_announce)
    except QiError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
