from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qi.core.packing import unpack
from qi.errors import UnsupportedError
from qi.exporters.integers_header import header
from qi.exporters.integers_record import record_of
from qi.ir import Op, QGraph, Tensor
from qi.ir.routing import route
from tests.ir.graphs import codes_of, graph_of, perceptron, real, weight

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")


def header_of(graph: QGraph, **options: bool) -> str:
    return header(*record_of(route(graph, "reference", packed=True)), **options)


def array(text: str, name: str) -> list[str]:
    found = re.search(rf"static const \w+ {name}\[(\d+)\] = {{([^}}]*)}};", text)
    assert found, name
    values = found[2].replace("\n", " ").replace(" ", "").strip(",").split(",")
    assert len(values) == int(found[1])
    return values


def compiles(text: str, folder: Path, *flags: str) -> str:
    """What the compiler has to say."""
    (folder / "model.h").write_text(text, encoding="ascii")
    (folder / "main.c").write_text('#include "model.h"\n#include "model.h"\nint main(void) { return 0; }\n')
    options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wundef", "-Werror", *flags]
    done = subprocess.run(
        ["gcc", *options, "-c", "main.c", "-o", "main.o"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr


def four_bits() -> QGraph:
    x, y = codes_of("x", 3), codes_of("y", 2)
    w = weight("w", np.array([[-7, 7], [1, -1], [0, 3]]), [0.1, 0.2])
    w.qparams = type(w.qparams)(
        w.qparams.scale, w.qparams.zero_point, type(w.grid)(4, narrow=True), w.qparams.granularity
    )
    return graph_of(Op("dense", [x, w], [y], {"activation": "none"}, "layer"), inputs=[x])


def test_arrays_and_numbers() -> None:
    graph = perceptron()
    text = header_of(graph)
    w, b = graph.ops[1].inputs[1:]
    assert array(text, "graph_w0") == [str(v) for v in w.data.ravel()]
    assert array(text, "graph_b0") == [str(v) for v in b.data]
    for line in (
        "#define GRAPH_X_SIZE 4", "#define GRAPH_HIDDEN_DIM1 3", "#define GRAPH_HIDDEN_ZERO_POINT (-128)",
        "#define GRAPH_OP1_CODE_MAX 127", "#define GRAPH_HIDDEN_SCALE 0.0500000007f",
    ):  # fmt: skip
        assert line in text.splitlines()
    assert (
        "graph_op1: dense, in integers, layer 'dense0'\n   graph_hidden = dense(graph_x_codes, graph_w0, graph_b0)"
        in text
    )
    assert "_scales" not in text  # nothing in integers takes them


def test_weights_in_bytes_or_packed() -> None:
    assert array(header_of(four_bits()), "graph_w") == ["-7", "7", "1", "-1", "0", "3"]
    packed = array(header_of(four_bits(), packed=True), "graph_w")
    stored = np.array([int(v) for v in packed], np.uint8)
    assert unpack(stored, 4, (6,), signed=True).tolist() == [-7, 7, 1, -1, 0, 3]
    assert packed[0] == str(0x79)  # -7 in the low half


def test_attributes_are_macros() -> None:
    x, y = codes_of("x", 5, 5, 2), codes_of("y", 6, 7, 2)
    op = Op("pad", [x], [y], {"pads": [[0, 0], [1, 0], [0, 2], [0, 0]]})
    text = header_of(graph_of(op, inputs=[x]))
    assert "#define GRAPH_OP0_PADS_1_0 1\n#define GRAPH_OP0_PADS_1_1 0\n#define GRAPH_OP0_PADS_2_0 0\n" in text


def test_scales_are_there_where_real_numbers_need_them() -> None:
    x, y, w = real("x", 2), real("y", 2), weight("w", [[1, 2], [3, 4]], [0.5, 0.25])
    text = header_of(graph_of(Op("dense", [x, w], [y], {"activation": "none"}), inputs=[x]))
    assert array(text, "graph_w_scales") == ["0.5f", "0.25f"]


@needs_gcc
@pytest.mark.parametrize("graph", [perceptron(), four_bits()], ids=["perceptron", "four_bits"])
def test_it_compiles(graph: QGraph, tmp_path: Path) -> None:
    assert not compiles(header_of(graph, packed=True), tmp_path)


@needs_gcc
def test_names_that_would_break_c(tmp_path: Path) -> None:
    """Ends of comments, lines that go on, trigraphs, other alphabets, keywords, empty arrays and extreme numbers."""
    names = ["*/ int x", "/* /*", "back\\", "??/", "größe\n", "int", "op0"]
    tensors = [real("float", 3), *(real(name, 3) for name in names)]
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    constants = [
        Tensor("values", (3,), data=values),
        Tensor("none", (0,), data=np.zeros(0, np.float32)),
        Tensor("least", (2,), "int32", data=np.array([-(2**31), 2**31 - 1], np.int32)),
        Tensor("least64", (1,), "int64", data=np.array([-(2**63)])),
        Tensor("one", (1,), data=np.array([1], np.float32)),
        Tensor("small", (1,), data=np.array([-1e-38], np.float32)),
        Tensor("truth", (1,), "bool", data=np.array([True])),
    ]
    ops = [
        Op("add", [a, c], [b], {"activation": "none"}, source=f"{b.name} \\")
        for a, b, c in zip(tensors, tensors[1:], constants, strict=False)
    ]
    graph = graph_of(*ops, inputs=[tensors[0]])
    graph.name = "for"
    text = header_of(graph)
    assert not compiles(text, tmp_path)
    assert "<math.h>" in text
    assert "<math.h>" not in header_of(perceptron())
    assert array(text, "for_values") == ["NAN", "INFINITY", "(-INFINITY)"]
    assert array(text, "for_least") == ["(-2147483647-1)", "2147483647"]
    assert [float(v[:-1]) for v in array(text, "for_small")] == [np.float32(-1e-38)]


def test_other_types_are_refused() -> None:
    x, y = real("x", 1), real("y", 1)
    c = Tensor("c", (1,), "complex64", data=np.zeros(1, np.complex64))
    with pytest.raises(UnsupportedError, match="complex64"):
        header_of(graph_of(Op("add", [x, c], [y], {"activation": "none"}), inputs=[x]))
