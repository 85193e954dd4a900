from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qi.errors import MissingDependencyError
from qi.service import server
from qi.service.settings import Settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, int]]:
    """What was asked to be served; nothing is."""
    found: list[tuple[Settings, int]] = []

    def serve(settings: Settings, *, workers: int, announce: Callable[[str], None]) -> None:
        found.append((settings, workers))
        announce("http://127.0.0.1:1")

    monkeypatch.setattr(server, "serve", serve)
    return found


def test_options_go_before_the_environment(
    served: list[Any], qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QI_API_PORT", "1234")
    monkeypatch.setenv("QI_API_MAX_NDIM", "3")
    done = qi_command("serve", "--port", 0, "--store", "a.db", "--workers", 2, "--log", "json")
    assert (done.code, done.out) == (0, "Quantizer API at http://127.0.0.1:1 (Ctrl+C stops it)\n")
    ((settings, workers),) = served
    assert (settings.port, settings.store, settings.log, settings.max_ndim, workers) == (0, "a.db", "json", 3, 2)


@pytest.mark.parametrize("port", ["-1", "65536", "http", "٣"])
def test_a_port_is_a_number(port: str, qi_command: Callable[..., Any], served: list[Any]) -> None:
    done = qi_command("serve", "--port", port)
    assert done.code == 2
    assert served == []


def test_a_wrong_setting_is_bad_input(
    qi_command: Callable[..., Any], served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QI_API_MAX_NDIM", "many")
    done = qi_command("serve")
    assert done.code == 2
    assert "QI_API_MAX_NDIM" in done.error


def test_what_cannot_go_well_is_bad_input(qi_command: Callable[..., Any]) -> None:
    done = qi_command("serve", "--host", "0.0.0.0")
    assert done.code == 2
    assert "API keys" in done.error


def test_a_missing_package_is_named(qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, **_: Any) -> None:
        raise MissingDependencyError(f"qi serve needs {module}")

    monkeypatch.setattr("qi.cli.serve.require", missing)
    done = qi_command("serve")
    assert (done.code, done.error) == (1, "qi serve needs fastapi")
