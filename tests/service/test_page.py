"""The page, as files and as a person in front of a browser has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qi.engine import QuantizationConfig, Quantizer
from qi.service.app import create_app
from qi.service.page import PATHS, router
from qi.service.settings import Settings
from tests.chromium import Page, browsing, executable
from tests.service.live import serving

STATIC = sorted(entry.name for entry in files("qi.service.static").iterdir() if not entry.name.startswith("__"))
KEY = "correct-horse"
CONFIGS = {
    "default": QuantizationConfig(symmetric=False),
    "channels": QuantizationConfig(per_channel=True, symmetric=False),
    "four-bits": QuantizationConfig(quantization_type="int4"),
    "wide": QuantizationConfig(quantization_type="uint16", symmetric=False),
}
X = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)


@pytest.fixture(scope="module")
def files_client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(router())
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_served_and_the_browser_may_run_nothing_else(files_client: TestClient, path: str) -> None:
    answer = files_client.get(path)
    assert answer.status_code == 200
    assert answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = files_client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_there_is_no_file_without_a_path_and_no_path_out_of_the_folder(files_client: TestClient) -> None:
    served = {path.rpartition("/")[2] or path for path in PATHS}
    assert {"ui.html" if name == "ui" else name for name in served} == set(STATIC)
    for path in ("/ui/", "/ui/nothing.js", "/ui/../page.py", "/ui/%2e%2e/page.py", "/ui/__init__.py"):
        assert files_client.get(path, follow_redirects=False).status_code in (307, 404)


@pytest.mark.parametrize("name", STATIC)
def test_the_files_name_nothing_of_elsewhere(name: str) -> None:
    text = files("qi.service.static").joinpath(name).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|document\.write|\beval\(|\son\w+=|style=", text)
    for source in re.findall(r'(?:src|href)="([^"]+)"', text) if name.endswith(".html") else ():
        assert source == "data:," or f"/{source}" in PATHS


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(Settings(store="memory", api_keys=KEY))
    for name, config in CONFIGS.items():
        if name != "default":
            app.state.service.instances.create(name, config)
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if executable() is None:
        pytest.skip("no Chromium")
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Iterator[Page]:
    """The page, with the key typed in."""
    browser.open(f"{url}/ui")
    browser.until("document.querySelector('.message.bad')")  # no key yet
    setting(browser, "key", KEY)
    browser.until(f"document.getElementById('instance').length === {len(CONFIGS)}")
    browser.events.clear()
    browser._seen = 0
    yield browser
    assert browser.complaints() == []
    assert {address.split("?")[0] for address in browser.requested() if not address.startswith((url, "blob:"))} == set()


def setting(page: Page, name: str, value: str) -> None:
    """Sets a field as its user would: with its event."""
    page.evaluate(
        f"(field => {{ field.value = {value!r}; field.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
        f"(document.getElementById({name!r}))"
    )


def facts(page: Page) -> dict[str, str]:
    """What the page tells of a file, once it does."""
    page.until("!document.getElementById('result').matches('[hidden], .stale')")
    divs = "[...document.querySelectorAll('#facts div')]"
    divs = "[...document.querySelectorAll('#facts div')]"
    entries = page.evaluate(f"{divs}.map(div => [...div.children].map(child => child.innerText))")
    return {name: text.replace("\n", "; ") for name, text in entries}


def saved(tmp_path: Path, array: np.ndarray, name: str = "x.npy") -> Path:
    np.save(tmp_path / name, array, allow_pickle=False)
    return tmp_path / name


def bars(page: Page, chart: str) -> int:
    """What all bars of a histogram stand for."""
    titles = f"[...document.querySelectorAll('#{chart} rect title')]"
    return int(page.evaluate(f"{titles}.reduce((sum, title) => sum + parseInt(title.textContent), 0)"))


def downloaded(page: Page, stem: str = "x") -> tuple[np.ndarray, np.ndarray]:
    codes, numbers = page.download("#get-codes"), page.download("#get-numbers")
    assert (codes[0], numbers[0]) == (f"{stem}.codes.npy", f"{stem}.dequantized.npy")
    return np.load(codes[1]), np.load(numbers[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dropped_file_is_quantized_shown_and_given_back(page: Page, tmp_path: Path, name: str) -> None:
    quantizer = Quantizer(CONFIGS[name])
    codes = quantizer.quantize(X)
    numbers = quantizer.dequantize(codes)
    setting(page, "instance", name)
    page.drop("#drop", saved(tmp_path, X, "weights.npy"))
    told = facts(page)
    assert told["shape"] == "4 × 60; 240 numbers, FP32"
    assert told["codes"] == f"{codes.dtype.name.upper()}; {len(np.unique(codes))} different ones"
    assert float(told["greatest error"].split(";")[0]) == pytest.approx(np.abs(numbers - X).max(), rel=1e-3)
    noise = np.mean(np.square(np.float64(numbers) - X))
    assert told["signal to noise"] == f"{10 * np.log10(np.mean(np.square(np.float64(X))) / noise):.1f} dB"
    if name == "channels":
        assert told["scale"].endswith("; of 4 channels")
    else:
        assert float(told["scale"]) == pytest.approx(quantizer.scale, rel=1e-3)
        assert int(told["zero point"]) == quantizer.zero_point
    for chart in ("numbers", "codes", "errors"):
        assert bars(page, chart) == X.size
    got = downloaded(page, "weights")
    assert (got[0].dtype, got[1].dtype) == (codes.dtype, np.float32)
    assert np.array_equal(got[0], codes)
    assert np.array_equal(got[1], numbers)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(X.reshape(4, 5, 12)),
        X.astype(">f8"),
        X.astype("<f2"),
        np.arange(-8, 8, dtype=">i2").reshape(2, 8),
        np.arange(6, dtype="<i8"),
        np.array([True, False]),
        np.float32(2.5),
        np.zeros((0, 3), np.float32),
        np.full(5, 3.0, np.float32),
    ],
    ids=lambda array: f"{array.dtype.str[:1]}{array.dtype.name}{array.shape}",
)
def test_files_of_every_kind(page: Page, tmp_path: Path, array: np.ndarray) -> None:
    quantizer = Quantizer(CONFIGS["default"])
    codes = quantizer.quantize(np.asarray(array))
    page.choose("#file", saved(tmp_path, array))
    facts(page)
    got = downloaded(page)
    assert got[0].shape == array.shape
    assert np.array_equal(got[0], codes)
    assert np.array_equal(got[1], quantizer.dequantize(codes))


def test_changing_how_does_it_again(page: Page, tmp_path: Path) -> None:
    page.choose("#file", saved(tmp_path, X))
    assert facts(page)["codes"].startswith("INT8")
    setting(page, "instance", "wide")
    page.until("document.getElementById('facts').innerText.includes('UINT16')")
    setting(page, "instance", "channels")
    setting(page, "channel", "1")
    page.until("document.getElementById('facts').innerText.includes('of 60 channels')")
    codes = Quantizer(CONFIGS["channels"]).quantize(X, channel_dim=1)
    assert np.array_equal(downloaded(page)[0], codes)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK\x03\x04 something else altogether", "This is no .npy file."),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O', ", "something else"),
        (b"", "This is no .npy file."),
    ],
)
def test_files_that_are_none_are_refused_before_they_are_sent(
    page: Page, tmp_path: Path, content: bytes, text: str
) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    page.choose("#file", tmp_path / "x.npy")
    page.until("document.querySelector('.message.bad')")
    assert text in page.evaluate("document.getElementById('message').innerText")
    assert not any("infer" in address for address in page.requested())


def test_what_the_service_refuses_is_told(browser: Page, page: Page, tmp_path: Path) -> None:
    page.choose("#file", saved(tmp_path, np.float32([1, np.nan])))
    page.until("document.querySelector('.message.bad')")
    assert "NaN" in page.evaluate("document.getElementById('message').innerText")
    assert page.evaluate("document.getElementById('result').hidden")
    browser.events[:] = [event for event in browser.events if event.get("method") != "Log.entryAdded"]  # the status 4xx


def test_markup_in_a_name_stays_text(page: Page, tmp_path: Path) -> None:
    page.choose("#file", saved(tmp_path, X, "<img src=x onerror=alert(1)>.npy"))
    facts(page)
    assert page.evaluate("document.getElementById('name').innerText").startswith("<img")
    assert page.evaluate("document.querySelectorAll('#result img').length") == 0
