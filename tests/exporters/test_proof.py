from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qi.errors import InputError
from qi.exporters.formats import FORMATS, Format
from qi.exporters.manifest import Options
from qi.exporters.proof import ROUNDING, Agreement, Proof, coded, made_samples, prove, stored
from qi.ir import Op, QGraph, Tensor
from qi.ir.routing import route
from tests.exporters.exported import graph
from tests.ir.graphs import act, codes_of, graph_of, real

KINDS = pytest.mark.parametrize("name", FORMATS)


def file_of(name: str, options: Options | None = None) -> tuple[Format, QGraph, bytes]:
    kind = FORMATS[name]
    routed = graph(kind.target)
    return kind, routed, kind.write(routed, options or Options(), b"")


def changing(kind: Format, names: Mapping[str, float]) -> Format:
    """A format whose runtime has tensors (by their names in the file) one element of which is a step off."""

    def run(data: bytes, inputs: Any, **options: Any) -> Any:
        found = {name: np.array(array) for name, array in kind.run(data, inputs, **options).items()}
        for name in set(names) & set(found) - ({"y"} if options.get("tensors") else set()):
            found[name].reshape(-1)[-1] += names[name]
        return found

    return replace(kind, run=run)


@KINDS
@pytest.mark.parametrize("integer_io", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_is_equal_to_its_twin(name: str, integer_io: bool, threads: int) -> None:
    options = Options(integer_io=integer_io)
    kind, routed, data = file_of(name, options)
    proof = prove(data, routed, kind, made_samples(routed), options=options, threads=threads)
    assert proof.exact
    assert (proof.samples, proof.source, proof.threads, proof.first) == (64, "given", threads, None)
    assert proof.outputs == (Agreement("y", 128, 0, 0.0),)
    assert (proof.max_lsb, proof.share) == (0, 0)


@KINDS
def test_the_first_tensor_that_differs_is_found(name: str) -> None:
    kind, routed, data = file_of(name)
    there = kind.places(data, routed, Options())["hidden"][0]
    scale = routed.outputs[0].scale
    runtime = changing(kind, {there: 3, "y": scale})
    proof = prove(data, routed, runtime, made_samples(routed, 4))
    assert not proof.exact
    assert proof.outputs[0].differing == 1
    assert proof.max_lsb == pytest.approx(1)
    assert proof.share == 1 / 8
    assert proof.first == Agreement("hidden", 12, 1, 3.0)
    assert proof.first.share == 1 / 12
    only_output = prove(data, routed, changing(kind, {"y": 2 * scale}), made_samples(routed, 4))
    assert only_output.max_lsb == pytest.approx(2)


@KINDS
def test_a_runtime_that_cannot_show_what_is_within_names_no_first(name: str) -> None:
    kind, routed, data = file_of(name)
    wrong = changing(kind, {"y": 1})

    def run(data: bytes, inputs: Any, *, tensors: Any = (), **options: Any) -> Any:
        if tensors:
            raise InputError("expected tensors of the file")
        return wrong.run(data, inputs, **options)

    proof = prove(data, routed, replace(kind, run=run), made_samples(routed))
    assert not proof.exact
    assert proof.first is None


@KINDS
def test_outputs_of_another_name_or_shape_are_refused(name: str) -> None:
    kind, routed, data = file_of(name)
    samples = made_samples(routed)
    for change in (
        lambda found: {"z": found["y"], "w": found["y"]},
        lambda found: {"y": found["y"][:, :1]},
        lambda found: {"y": found["y"].astype(str)},
    ):
        other = replace(kind, run=lambda *given, change=change, **options: change(kind.run(*given, **options)))
        with pytest.raises(InputError, match="expected"):
            prove(data, routed, other, samples)


def test_numbers_that_are_none_count_as_infinitely_wrong() -> None:
    kind, routed, data = file_of("litert")
    proof = prove(data, routed, changing(kind, {"y": np.nan}), made_samples(routed))
    assert proof.max_lsb == np.inf
    record = proof.to_dict()
    assert (record["max_lsb"], record["exact"]) == ("inf", False)
    json.dumps(record, allow_nan=False)


def test_outputs_in_float_are_measured_by_their_largest() -> None:
    x, y = real("x", 4), real("y", 4)
    routed = route(graph_of(Op("unary", [x], [y], {"function": "tanh"}), inputs=[x]), "litert")
    kind = FORMATS["litert"]
    data = kind.write(routed, Options(), b"")
    samples = [np.full((2, 4), 255, "float32")]
    assert prove(data, routed, kind, samples).exact
    proof = prove(data, routed, changing(kind, {"y": 2 / 255}), samples)
    assert proof.max_lsb == pytest.approx(2)
    assert proof.relative == pytest.approx(2 / 255)
    assert (proof.equal, proof.share_apart) == (False, 1 / 8)
    proof = prove(data, routed, changing(kind, {"y": ROUNDING / 2}), samples)
    assert (proof.equal, proof.exact, proof.first, proof.share_apart) == (True, False, None, 0)
    record = proof.to_dict()
    assert (record["equal"], record["share_apart"]) == (True, 0)
    assert record["max_relative"] == pytest.approx(ROUNDING / 2, rel=0.01)
    assert prove(data, routed, changing(kind, {"y": np.nan}), samples).to_dict()["max_relative"] == "inf"
    assert not prove(data, routed, changing(kind, {"y": np.inf}), samples).equal


def test_behind_dynamic_products_a_step_of_8_bits_is_equal() -> None:
    x, y = real("x", 4), real("y", 3)
    w = Tensor("w", (4, 3), "float32", act(), np.arange(-6, 6).reshape(4, 3))
    dense = Op("dense", [x, w], [y], {"activation": "none"})
    routed = route(graph_of(dense, inputs=[x]), "litert")
    kind = FORMATS["litert"]
    data = kind.write(routed, Options(), b"")
    samples = [np.random.default_rng(0).normal(size=(8, 4)).astype("float32")]
    largest = float(np.abs(kind.run(data, samples)["y"]).max())
    for steps, equal in ((0.0, True), (0.5, True), (1.5, False)):
        proof = prove(data, routed, changing(kind, {"y": steps * largest / 255}), samples)
        assert proof.dynamic
        assert (proof.equal, proof.share_apart) == (equal, (steps > 0) / 24)
    plain = route(graph_of(dense, inputs=[x]), "litert", dynamic=False)
    data = kind.write(plain, Options(), b"")
    assert not prove(data, plain, changing(kind, {"y": 0.5 * largest / 255}), samples).equal


def test_codes_have_no_rounding() -> None:
    kind, routed, data = file_of("litert")
    proof = prove(data, routed, changing(kind, {"y": routed.outputs[0].scale}), made_samples(routed))
    assert (proof.equal, proof.share_apart, proof.relative) == (False, 1 / 128, 0)


def test_codes_are_stored_as_each_runtime_has_them() -> None:
    codes = np.asarray([-128, 0, 127])
    narrow, wide = codes_of("a", 3), codes_of("b", 3, qparams=act(bits=16))
    assert stored(narrow, codes, "litert").dtype == np.int8
    assert stored(narrow, codes, "onnxruntime").tolist() == [0, 128, 255]
    assert stored(wide, codes, "litert").dtype == np.int16
    found = stored(wide, np.asarray([-32768, 0, 32767]), "onnxruntime")
    assert (found.dtype, found.tolist()) == (np.uint16, [0, 32768, 65535])


def test_inputs_become_codes_where_they_are_quantized() -> None:
    x, index = real("x", 2), Tensor("i", (None, 1), "int32")
    codes = codes_of("c", 2, qparams=act(0.5, 10))
    routed = graph_of(Op("quantize", [x], [codes]), inputs=[x, index], target="litert")
    found = coded(routed, FORMATS["litert"], [np.asarray([[0.5, 1e9]]), np.asarray([[7]])])
    assert [array.tolist() for array in found] == [[[11, 127]], [[7]]]


def test_made_samples_meet_all_codes_and_are_always_the_same() -> None:
    x, index, plain = real("x", 1000), Tensor("i", (None, None), "int32"), real("p", 1000)
    codes = codes_of("c", 1000, qparams=act(0.5, 10))
    routed = graph_of(Op("quantize", [x], [codes]), inputs=[x, index, plain], target="litert")
    arrays = made_samples(routed, 9)
    assert [array.shape for array in arrays] == [(9, 1000), (9, 1), (9, 1000)]
    assert [array.dtype.name for array in arrays] == ["float32", "int32", "float32"]
    found = coded(routed, FORMATS["litert"], arrays)[0]
    assert len(np.unique(found)) == 256
    assert set(np.unique(arrays[1])) <= {0, 1}
    for one, two in zip(arrays, made_samples(routed, 9), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(arrays[0], made_samples(routed, 9, seed=1)[0])


def test_a_proof_of_nothing_shares_nothing() -> None:
    assert (Proof(0, "given", ()).share, Proof(0, "given", ()).max_lsb, Agreement("a", 0, 0, 0).share) == (0, 0, 0)


@KINDS
def test_the_only_output_may_have_another_name(name: str) -> None:
    kind, routed, data = file_of(name)

    def run(data: bytes, inputs: Any, **options: Any) -> Any:
        found = kind.run(data, inputs, **options)
        return found if options.get("tensors") else {"output_0": found["y"]}

    renamed = replace(kind, run=run)
    assert prove(data, routed, renamed, made_samples(routed, 4)).exact
    two = replace(kind, run=lambda *given, **options: {"a": run(*given)["output_0"], "b": run(*given)["output_0"]})
    with pytest.raises(InputError, match=r"the outputs \['y'\]; received one with \['a', 'b'\]"):
        prove(data, routed, two, made_samples(routed, 4))
