"""The interactive documentation, as files and as a person in front of a browser has it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from qi.service.app import create_app
from qi.service.docs import PATHS
from qi.service.settings import Settings
from tests.chromium import browsing, executable
from tests.service.live import serving

KEY = "correct-horse"


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_app(Settings(store="memory", api_keys=KEY)))


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_served_and_the_browser_may_run_nothing_else(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert len(answer.content) > 50
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["docs.html", "docs.css", "docs.js"])
def test_our_files_name_nothing_of_elsewhere(client: TestClient, name: str) -> None:
    text = files("qi.service.docs").joinpath(name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|innerHTML|document\.write|\beval\(|\son\w+=|style=", text)
    for source in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert source == "data:," or f"/{source}" in PATHS


def test_what_the_page_shows_needs_a_key(client: TestClient) -> None:
    assert client.get("/openapi.json").status_code == 401
    assert client.get("/openapi.json", headers={"X-API-Key": KEY}).status_code == 200


def test_the_other_path_leads_there(client: TestClient) -> None:
    answer = client.get("/redoc", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


def test_without_documentation_there_is_none() -> None:
    client = TestClient(create_app(Settings(store="memory", docs=False)))
    assert {client.get(path).status_code for path in (*PATHS, "/redoc")} == {404}


@pytest.mark.skipif(executable() is None, reason="no Chromium")
def test_a_person_reads_and_tries_every_operation(tmp_path: Path) -> None:
    app = create_app(Settings(store="memory", api_keys=KEY))
    operations = sum(len(methods) for methods in app.openapi()["paths"].values())
    with serving(app) as url, browsing(tmp_path) as page:
        page.open(f"{url}/docs")
        page.evaluate(f"document.getElementById('key').value = {KEY!r}")
        page.evaluate("document.querySelector('#access button').click()")
        page.until(f"document.querySelectorAll('.opblock').length === {operations}")
        find = (
            "const block = [...document.querySelectorAll('.opblock-get')].find("
            "b => b.querySelector('[data-path]').dataset.path === '/instances');"
        )
        page.evaluate(f"{{{find} block.querySelector('.opblock-summary-control').click()}}")
        page.until("document.querySelector('.try-out__btn')")
        page.evaluate("document.querySelector('.try-out__btn').click()")
        page.until("document.querySelector('.execute')")
        page.evaluate("document.querySelector('.execute').click()")
        page.until(
            "document.querySelector('.live-responses-table tbody .response-col_status')?.innerText.includes('200')"
        )
        assert "default" in page.evaluate("document.querySelector('.live-responses-table').innerText")
        refused = [event["params"]["entry"]["text"] for event in page.events if event["method"] == "Log.entryAdded"]
    assert [text for text in refused if "Security Policy" in text] == []
