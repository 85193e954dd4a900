from __future__ import annotations

import os

import pytest

from qi.errors import ConfigError
from qi.service.settings import Settings, misspelt, read_settings, warn_of_misspelt


def test_the_documented_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.store) == ("127.0.0.1", 8000, "memory")
    assert (settings.api_keys, settings.cors_origins, settings.legacy_errors) == ((), (), False)
    assert (settings.max_json_bytes, settings.max_binary_bytes) == (16 << 20, 256 << 20)
    assert (settings.max_elements, settings.max_ndim, settings.max_instances) == (64 << 20, 8, 1000)
    assert (settings.max_channels, settings.max_header_bytes, settings.header_timeout) == (65536, 65536, 10)
    assert (settings.grace, settings.shutdown_delay) == (30, 1)
    assert settings.threads == (os.cpu_count() or 1)


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QI_API_MAX_NDIM", "4")
    monkeypatch.setenv("QI_API_API_KEYS", "read:abc, write:def")
    monkeypatch.setenv("QI_API_ALLOWED_HOSTS", "a.example,b.example")
    monkeypatch.setenv("QI_API_LEGACY_ERRORS", "1")
    settings = read_settings(workers_threads=3)
    assert (settings.max_ndim, settings.threads, settings.legacy_errors) == (4, 3, True)
    assert [key.get_secret_value() for key in settings.api_keys] == ["read:abc", "write:def"]
    assert settings.allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize("names", [("QI_API_KEYS",), ("QI_API_API_KEYS",), ("QI_API_KEYS", "QI_API_API_KEYS")])
def test_keys_have_a_shorter_name(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        monkeypatch.setenv(name, f"key{number},read:other")
    assert [key.get_secret_value() for key in read_settings().api_keys] == ["key0", "read:other"]
    assert [key.get_secret_value() for key in read_settings(api_keys="given").api_keys] == ["given"]
    monkeypatch.setenv("API_KEYS", "of another program")
    assert [key.get_secret_value() for key in read_settings().api_keys] == ["key0", "read:other"]


def test_a_key_of_another_program_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "of another program")
    assert read_settings().api_keys == ()


def test_keys_are_not_shown() -> None:
    assert "abc" not in repr(Settings(api_keys="read:abc"))


def test_an_impossible_value_is_named_but_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QI_API_PORT", "hunter2")
    with pytest.raises(ConfigError, match="QI_API_PORT") as caught:
        read_settings()
    assert "hunter2" not in str(caught.value)


def test_none_leaves_it_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QI_API_HOST", "::1")
    assert read_settings(host=None).host == "::1"


def test_what_looks_like_a_setting_is_told() -> None:
    told = misspelt(
        ["QI_API_MAX_NDIMS", "qi_api_port", "QI_API_KEYS", "QI_API_API_KEYS", "QI_SEED", "QI_API_ZZZZZZZZZZZZ"]
    )
    assert len(told) == 2
    assert "received QI_API_MAX_NDIMS" in told[0]
    assert "Did you mean 'QI_API_MAX_NDIM'" in told[0]
    assert "QI_API_ZZZZZZZZZZZZ, which sets nothing." in told[1]
    assert misspelt(f"QI_API_{name.upper()}" for name in Settings.model_fields) == []


def test_a_warning_has_no_values(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("QI_API_KEY", "hunter2")
    warn_of_misspelt()
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "qi.service.settings")
    assert "QI_API_KEYS" in record.getMessage()
    assert "hunter2" not in record.getMessage()
