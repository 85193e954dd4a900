from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qi.errors import FileFormatError
from qi.exporters import litert
from qi.exporters.litert_check import check, with_outputs
from qi.exporters.litert_file import packed, schema
from qi.ir.routing import route
from tests.ir.graphs import perceptron

DATA = litert.write(route(perceptron(), "litert"))


def altered(change: Callable[[Any], None]) -> bytes:
    """The file with one thing changed, and no digest to tell of it."""
    model = schema().ModelT.InitFromPackedBuf(DATA)
    model.metadata = None
    change(model)
    return packed(model, len(DATA))


def test_what_is_in_it() -> None:
    contents = check(DATA)
    assert contents.sealed
    assert contents.outputs[0][0] == "y"
    assert contents.names["x"] == 0
    codes = schema().BuiltinOperator
    kinds = [code for code, _, _ in contents.operators]
    assert kinds == [codes.QUANTIZE, codes.FULLY_CONNECTED, codes.FULLY_CONNECTED, codes.DEQUANTIZE]


@pytest.mark.parametrize("data", [b"", b"TFL3", DATA[:11], b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 60])
def test_something_else(data: bytes) -> None:
    with pytest.raises(FileFormatError):
        check(data)


@pytest.mark.parametrize("keep", [12, 100, 1000, len(DATA) // 2, len(DATA) - 1])
def test_cut_off(keep: int) -> None:
    with pytest.raises(FileFormatError):
        check(DATA[:keep])


def first(model: Any) -> Any:
    return model.subgraphs[0]


CHANGES: dict[str, Callable[[Any], None]] = {
    "version": lambda m: setattr(m, "version", 2),
    "no graph": lambda m: setattr(m, "subgraphs", []),
    "operator's input": lambda m: setattr(first(m).operators[1], "inputs", [0, 1, 999]),
    "operator's output": lambda m: setattr(first(m).operators[1], "outputs", [-1]),
    "operator's code": lambda m: setattr(first(m).operators[1], "opcodeIndex", 77),
    "graph's input": lambda m: setattr(first(m), "inputs", [10_000]),
    "buffer": lambda m: setattr(first(m).tensors[0], "buffer", 9999),
    "negative shape": lambda m: setattr(first(m).tensors[2], "shape", [-4, 3]),
    "shape beyond its buffer": lambda m: setattr(first(m).tensors[2], "shape", [1000, 1000]),
    "axis of scales": lambda m: setattr(first(m).tensors[2].quantization, "quantizedDimension", 7),
    "scales": lambda m: setattr(first(m).tensors[2].quantization, "scale", np.ones(2, np.float32)),
    "signature": lambda m: setattr(m.signatureDefs[0].outputs[0], "tensorIndex", 12345),
    "buffer outside": lambda m: setattr(m.buffers[1], "size", 2**40),
}


@pytest.mark.parametrize("what", CHANGES)
def test_numbers_that_lead_nowhere(what: str) -> None:
    assert not check(altered(lambda m: None)).sealed
    with pytest.raises(FileFormatError):
        check(altered(CHANGES[what]))


def test_random_damage_never_leaves_the_file() -> None:
    """Whatever the bytes, reading them ends in an answer or a FileFormatError."""
    data = altered(lambda m: None)
    refused = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        changed = bytearray(data)
        for at in rng.integers(0, len(data) - 4, rng.integers(1, 6)):
            changed[at : at + 4] = int(rng.choice([0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(4, "little")
        try:
            check(bytes(changed))
        except FileFormatError:
            refused += 1
    assert refused > 100


def test_with_outputs() -> None:
    contents = check(with_outputs(DATA, [check(DATA).names["hidden"]]))
    assert [name for name, _ in contents.outputs] == ["hidden"]
