"""What every front end does when it lowers."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, LutGrid, PerChannel, PerGroup, QParams
from qi.errors import UnsupportedError
from qi.ir.graph import QGraph, Tensor
from qi.ir.lowered import changed_qparams, in_real_numbers, part_outputs, shown, signed_qparams
from qi.ir.passes import fuse
from tests.ir.test_passes import Draft


def test_codes_without_a_sign_move_down() -> None:
    found = signed_qparams(QParams(np.float32([0.5]), np.asarray([3]), IntGrid(8, signed=False)))
    assert (found.scale, found.zero_point, found.grid) == (0.5, -125, IntGrid(8))
    kept = signed_qparams(QParams(np.float32([0.5]), np.asarray([3]), IntGrid(4, narrow=True)))
    assert (kept.zero_point, kept.grid) == (3, IntGrid(4, narrow=True))


def test_scales_go_with_axes() -> None:
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    given = QParams(scale.reshape(1, 6), np.zeros((1, 6), int), IntGrid(8), PerChannel(1))
    found = changed_qparams(given, np.transpose, (6, 4), (4, 6))
    assert found.granularity == PerChannel(0)
    np.testing.assert_array_equal(found.scale, scale.reshape(6, 1))
    with pytest.raises(UnsupportedError, match="scales along one axis"):
        changed_qparams(given, lambda a: a.reshape(2, -1), (2, 12), (4, 6))


def test_groups_go_with_axes() -> None:
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(2, 3)
    given = QParams(scale, np.zeros((2, 3), int), IntGrid(4), PerGroup(0, 4, 1))
    found = changed_qparams(given, np.transpose, (3, 8), (8, 3))
    assert found.granularity == PerGroup(1, 4, 0)
    np.testing.assert_array_equal(found.scale, scale.T)


def test_an_output_that_is_an_input_gets_a_tensor_of_its_own() -> None:
    x = Tensor("x", (None, 4))
    graph = QGraph("g", [x], [x], [])
    part_outputs(graph, {"x"})
    assert [(op.kind, op.x.name, op.y.name) for op in graph.ops] == [("reshape", "x", "x_1")]
    assert graph.outputs[0] is graph.ops[0].y


def test_answers_are_real_numbers_or_codes_as_the_target_has_them() -> None:
    tensor = Tensor("y", (None, 2), qparams=QParams(np.float32(0.5), np.asarray(1), IntGrid(8)))
    codes = np.array([[-127, 3]])
    np.testing.assert_array_equal(shown(tensor, codes, "litert", False), [[-64.0, 1.0]])
    assert shown(tensor, codes, "litert", True).dtype == np.int8
    np.testing.assert_array_equal(shown(tensor, codes, "onnxruntime", True), np.uint8([[1, 131]]))
    real = Tensor("z", (None, 2))
    assert shown(real, codes, "litert", True) is codes


def test_a_graph_without_its_quantizers() -> None:
    draft = Draft(4)
    draft.quantize(0.02, 5)
    draft.dense(3)
    draft.quantize(0.05)
    draft.graph.outputs = [draft.last]
    fused, real = fuse(draft.graph.copy()), in_real_numbers(draft.graph.copy())
    assert [op.kind for op in fused.ops] == ["quantize", "dense"]
    assert [op.kind for op in real.ops] == ["dense"]
    assert not any(tensor.quantized for tensor in real.tensors())


def test_tables_are_no_grids_of_activations() -> None:
    table = QParams(np.float32([0.5]), np.asarray([0]), LutGrid([-1, 0, 1]))
    with pytest.raises(UnsupportedError, match="activations on an integer grid"):
        signed_qparams(table)
