from __future__ import annotations

import typing

from qi import typing as qi_typing


def test_a_json_object_has_names_for_keys() -> None:
    assert typing.get_origin(qi_typing.Json) is dict
    assert typing.get_args(qi_typing.Json)[0] is str


def test_a_shape_is_a_tuple_of_any_number_of_integers() -> None:
    assert qi_typing.Shape == tuple[int, ...]
