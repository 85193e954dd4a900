from __future__ import annotations

import typing

from qi import typing as qi_typing


def test_json_covers_exactly_what_the_json_module_writes() -> None:
    kinds = {typing.get_origin(kind) or kind for kind in typing.get_args(qi_typing.Json)}
    assert kinds == {dict, list, str, int, float, bool, type(None)}


def test_a_shape_is_a_tuple_of_any_number_of_integers() -> None:
    assert qi_typing.Shape == tuple[int, ...]
