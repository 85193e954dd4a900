"""`qi serve`: the quantization service."""

from __future__ import annotations

import argparse
from typing import Any

from qi.cli.console import Console
from qi.cli.options import positive
from qi.optional import require

__all__ = ["add", "run"]

_NEEDS = ("fastapi", "uvicorn", "pydantic_settings", "orjson", "python_multipart", "prometheus_client")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "serve", help="quantize arrays over HTTP", allow_abbrev=False,
        description="Serves named quantizers over HTTP until it is told to stop. Everything else is set by environment "
        "variables: QI_API_KEYS for the keys of clients on other machines, and those of qi.service.settings.",
    )  # fmt: skip
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=port, help="port to listen on; 0: any that is free (default: 8000)")
    parser.add_argument(
        "--store", metavar="URL",
        help="where instances live: memory, sqlite:///PATH or a path, redis://..., postgresql://... (default: memory)",
    )  # fmt: skip
    parser.add_argument("--workers", metavar="N", type=positive, default=1, help="processes (default: 1)")
    parser.add_argument("--log", choices=("console", "json"), help="how requests are logged (default: console)")
    parser.set_defaults(run=run)


def port(text: str) -> int:
    """The type of an option that names a port."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535; received {text[:20]!r}")
    return value


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Serves until the process is told to stop."""
    for module in _NEEDS:
        require(module, extra="service", feature="qi serve")
    from qi.service.server import serve
    from qi.service.settings import read_settings

    settings = read_settings(host=arguments.host, port=arguments.port, store=arguments.store, log=arguments.log)
    serve(
        settings,
        workers=arguments.workers,
        announce=lambda url: console.say(f"Quantizer API at {url} (Ctrl+C stops it)"),
    )
