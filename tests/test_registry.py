from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.registry import Registry, suggest


@pytest.fixture
def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour")
    for number, name in enumerate(["red", "green", "blue"]):
        registry.register(name)(number)
    return registry


def test_get_returns_what_was_registered(colours: Registry[int]) -> None:
    assert colours.get("green") == 1


def test_the_decorator_hands_its_argument_back() -> None:
    class Thing:
        pass

    assert Registry("thing").register("thing")(Thing) is Thing


def test_names_items_and_iteration_are_sorted(colours: Registry[int]) -> None:
    assert colours.names() == ("blue", "green", "red")
    assert tuple(colours) == colours.names()
    assert colours.items() == (("blue", 2), ("green", 1), ("red", 0))
    assert len(colours) == 3


def test_membership(colours: Registry[int]) -> None:
    assert "red" in colours
    assert "mauve" not in colours


def test_a_duplicate_is_refused_and_the_first_entry_stays(colours: Registry[int]) -> None:
    with pytest.raises(ConfigError, match=r"expected a new name for a colour; received name='red'.* by 0"):
        colours.register("red")
    assert colours.get("red") == 0


def test_a_decorator_used_twice_refuses_the_second_entry(colours: Registry[int]) -> None:
    add = colours.register("mauve")
    add(1)
    with pytest.raises(ConfigError, match="mauve"):
        add(2)
    assert colours.get("mauve") == 1


def test_an_empty_name_is_refused(colours: Registry[int]) -> None:
    with pytest.raises(ConfigError, match="received name=''"):
        colours.register("")


def test_an_unknown_name_names_the_nearest_and_all(colours: Registry[int]) -> None:
    with pytest.raises(ConfigError, match=r"name of a colour; received 'gren'\. Did you mean 'green'\? Known: blue, "):
        colours.get("gren")


@pytest.mark.parametrize("name", [None, 8, ["red"]])
def test_a_name_that_is_no_string_is_an_unknown_name(colours: Registry[int], name: object) -> None:
    with pytest.raises(ConfigError, match="name of a colour"):
        colours.get(name)  # type: ignore[arg-type]


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(ConfigError, match="Known: none"):
        Registry("colour").get("red")


def test_suggest_names_at_most_three_and_ignores_case() -> None:
    assert suggest("W8A8", ["w8a8"]) == " Did you mean 'w8a8'?"
    assert suggest("w8", ["w81", "w82", "w83", "w84"]).count("'w8") == 3


def test_suggest_is_silent_when_nothing_is_near() -> None:
    assert suggest("zzz", ["w8a8"]) == ""
    assert suggest("zzz", []) == ""


def test_suggest_looks_at_the_beginning_of_endless_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("difflib.get_close_matches", lambda name, names, n: seen.append(len(name)) or [])
    assert suggest("w8a8" * 10_000, ["w8a8"]) == ""
    assert seen == [100]


def test_repr_names_the_kind(colours: Registry[int]) -> None:
    assert repr(colours) == "Registry('colour', 3 entries)"
