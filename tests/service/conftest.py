"""A service with each store, called in this process and below each prefix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from qi.service.app import create_app
from qi.service.settings import Settings
from qi.service.store import Store, open_store
from tests.servers import STORES


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that the tests run on."""
    for name in [name for name in os.environ if name.startswith("QI_API_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, new_store_url: Callable[[str], str]) -> str:
    """The URL of a new store of each kind."""
    return new_store_url(request.param)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open store of each kind."""
    opened = open_store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """A function from settings to a client of a service that has them; all are stopped at the end."""
    clients: list[TestClient] = []

    def make(**settings: Any) -> TestClient:
        client = TestClient(create_app(Settings(**settings)), raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """A client of a service in memory."""
    return make_client()
