from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, QParams
from qi.exporters.litert_check import check
from qi.exporters.litert_file import Draft, packed, schema, sealed, unsealed
from tests.ir.graphs import act, codes_of, weight


def finished(draft: Draft, x: int) -> bytes:
    return draft.finish("model", [("x", x)], [("x", x)], {})


def test_names_are_given_once() -> None:
    draft = Draft()
    draft.reserve([codes_of("a", 2)])
    assert [draft.unique("a"), draft.unique("a"), draft.unique("b")] == ["a_1", "a_2", "b"]


def test_the_batch_is_open_and_activations_keep_their_scale() -> None:
    draft = Draft()
    x = draft.tensor(codes_of("x", 3, qparams=act(0.25, -7)))
    tensor = schema().ModelT.InitFromPackedBuf(finished(draft, x)).subgraphs[0].tensors[0]
    assert (tensor.shape.tolist(), tensor.shapeSignature.tolist()) == ([1, 3], [-1, 3])
    assert (tensor.quantization.scale.tolist(), tensor.quantization.zeroPoint.tolist()) == ([0.25], [-7])


@pytest.mark.parametrize(("bits", "kind", "stored"), [(8, "INT8", 6), (4, "INT4", 3), (2, "INT2", 2)])
def test_packed_weights(bits: int, kind: str, stored: int) -> None:
    draft = Draft()
    codes = np.int8([[1, -1, 0], [1, 0, -1]])
    scales = QParams(np.float32([0.5, 0.25]), np.zeros(2), IntGrid(bits, narrow=True), PerChannel(0))
    number = draft.constant("w", codes, scales, axis=0, bits=bits)
    model = schema().ModelT.InitFromPackedBuf(finished(draft, draft.tensor(codes_of("x", 3))))
    tensor = model.subgraphs[0].tensors[number]
    assert tensor.type == getattr(schema().TensorType, kind)
    assert len(model.buffers[tensor.buffer].data) == stored


def test_contents_lie_at_multiples_of_sixteen() -> None:
    draft = Draft()
    rng = np.random.default_rng(0)
    for n in (1, 3, 17, 5000, 5001):
        draft.constant("w", rng.integers(0, 9, n).astype(np.int32))
    data = finished(draft, draft.tensor(codes_of("x", 3)))
    model = schema().Model.GetRootAs(data)
    starts = []
    for i in range(model.BuffersLength()):
        if model.Buffers(i).DataLength():
            content = model.Buffers(i).DataAsNumpy()
            starts.append(
                content.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).__array_interface__["data"][0]
            )
    assert len(starts) > 4
    assert all(start % 16 == 0 for start in starts)


def test_equal_constants_and_scales_lie_in_it_once() -> None:
    sizes = []
    for count in (1, 9):
        draft = Draft()
        for i in range(count):
            draft.tensor(weight(f"w{i}", np.full((4, 500), 3), np.full(500, 0.5)))
        sizes.append(len(finished(draft, draft.tensor(codes_of("x", 3)))))
    assert (sizes[1] - sizes[0]) / 8 < 250


def test_the_digest_covers_every_byte() -> None:
    draft = Draft()
    data = finished(draft, draft.tensor(codes_of("x", 3)))
    start, size = check(data).metadata["qi_sha256"]
    digest = data[start : start + size]
    assert unsealed(data, digest)
    for at in (0, 8, start - 1, start + size, len(data) - 1):
        assert not unsealed(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], digest)


def test_files_without_a_place_for_it_stay_as_they_are() -> None:
    model = schema().ModelT()
    model.version = 3
    assert sealed(packed(model, 0)) == packed(model, 0)
