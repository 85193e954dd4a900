from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from qi.errors import ConfigError, UnsupportedError
from qi.ir import TARGETS, Op
from qi.ir.kinds import KINDS, kernel, kernel_of, real_kind
from tests.ir.graphs import act, codes_of


@pytest.fixture
def triple() -> Iterator[str]:
    """A kind of operation made for one test."""

    @real_kind("triple", (1, 2), "times extra")
    def _triple(op: Op, x: np.ndarray) -> np.ndarray:
        return x * 3

    yield "triple"
    del KINDS._entries["triple"]


def test_a_kind_is_what_its_function_was_registered_with(triple: str) -> None:
    kind = KINDS.get(triple)
    assert (kind.name, kind.arity, kind.attrs, kind.moves) == ("triple", (1, 2), {"times", "extra"}, False)
    np.testing.assert_array_equal(kind.real(None, np.arange(3)), [0, 3, 6])
    assert KINDS.get("softmax").arity == (1, 1)


def test_a_kind_has_one_meaning(triple: str) -> None:
    with pytest.raises(ConfigError, match="triple"):
        real_kind(triple)(lambda op, x: x)


def test_a_kernel_serves_the_targets_it_names(triple: str) -> None:
    op = Op(triple, [codes_of("a", 1)], [codes_of("b", 1)], source="layer_7")

    @kernel(triple, "litert", "reference")
    def _kernel(op: Op, x: np.ndarray) -> np.ndarray:
        return x

    assert kernel_of(op, "litert") is kernel_of(op, "reference") is _kernel
    with pytest.raises(UnsupportedError, match="'onnxruntime' does in integers; received 'triple' of layer 'layer_7'"):
        kernel_of(op, "onnxruntime")


def test_a_kernel_has_a_known_target_of_its_own(triple: str) -> None:
    kernel(triple, "litert")(lambda op, x: x)
    for target in ("litert", "tensorrt"):
        with pytest.raises(ConfigError, match=f"without a kernel for 'triple'; received '{target}'"):
            kernel(triple, target)(lambda op, x: x)
    with pytest.raises(ConfigError, match="quadruple"):
        kernel("quadruple", "litert")(lambda op, x: x)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_moves_values_needs_no_kernel(target: str) -> None:
    a, b = (codes_of(name, 2, qparams=act(0.5, -9)) for name in "ab")
    op = Op("pad", [a], [b], {"pads": [[0, 0], [1, 0]]})
    found = kernel_of(op, target)(op, np.int32([[4, 5]]))
    np.testing.assert_array_equal(found, [[-9, 4, 5]])  # real zeros are the zero point


def test_every_target_says_what_it_is() -> None:
    assert set(TARGETS) == {"litert", "onnxruntime", "reference"}
    assert all(TARGETS.values())
