"""The documented module: ``python main.py`` and ``uvicorn main:app --host 0.0.0.0 --port 8000 --reload``."""

from __future__ import annotations

from qi.service.__main__ import main
from qi.service.main import *  # noqa: F403  # app, and every documented name

if __name__ == "__main__":
    raise SystemExit(main())
