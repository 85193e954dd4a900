"""What every registered quantizer promises, and that every framework gives the same numbers.

A new class is covered on arrival: its constructor's parameters say how `tests.examples` builds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import IntGrid
from qi.errors import InputError
from qi.quantizers import BaseInferableQuantizer, get_quantizer_class, quantizer_from_dict
from tests.examples import CLASSES, Case, awkward, cases, ends

ALL = cases()
NAMES = sorted(CLASSES)
each_case = pytest.mark.parametrize("case", ALL, ids=str)
each_class = pytest.mark.parametrize("name", NAMES)


def of_class(name: str) -> list[Case]:
    return [case for case in ALL if case.cls is CLASSES[name]]


@st.composite
def numbers_for(draw: st.DrawFn, case: Case) -> np.ndarray:
    """Finite float32 of the case's shape: around its range, or anything that float32 holds."""
    lo, hi = np.min(case.quantizer().min_range), np.max(case.quantizer().max_range)
    near = st.floats(-1.0, 2.0, width=32).map(lambda t: float(np.float32(lo + t * (hi - lo))))
    elements = draw(st.sampled_from([near, st.floats(width=32, allow_nan=False, allow_infinity=False)]))
    return draw(hnp.arrays(np.float32, case.shape(), elements=elements, fill=st.just(0.0)))


def case_and_numbers(name: str) -> st.SearchStrategy[tuple[Case, np.ndarray]]:
    return st.sampled_from(of_class(name)).flatmap(lambda c: st.tuples(st.just(c), numbers_for(c)))


def steps_and_range(q: BaseInferableQuantizer, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, least and greatest representable number of each element, in float64."""
    scale, zero_point = (a.astype(np.float64) for a in q.qparams(shape).expanded(shape))
    lo, hi = ends(q)
    return scale, (lo - zero_point) * scale, (hi - zero_point) * scale


def slices(q: BaseInferableQuantizer, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(results, arguments) of all elements that share a scale."""
    y, qparams = q(x), q.qparams(x.shape)
    ids = np.arange(qparams.scale.size).reshape(qparams.scale.shape)
    owner = np.broadcast_to(qparams.granularity.expand(ids, x.shape), x.shape)
    return [(y[owner == i], x[owner == i]) for i in range(ids.size)]


def in_every_class(property_: object) -> object:
    """Runs a hypothesis property for each class, over all ways to build it."""

    @each_class
    @settings(max_examples=40)
    @given(st.data())
    def test(name: str, data: st.DataObject) -> None:
        case, x = data.draw(case_and_numbers(name))
        property_(case.quantizer(), x)  # type: ignore[operator]

    return test


@in_every_class
def test_error_is_at_most_half_a_step_in_range(q, x):
    scale, lo, hi = steps_and_range(q, x.shape)
    # One float32 rounding of the quotient and one of the product may come on top.
    slack = 1e-6 * np.maximum(np.abs(x), scale)
    inside = (x >= lo) & (x <= hi)
    error = np.abs(q(x).astype(np.float64) - x)
    if isinstance(q.grid, IntGrid):
        assert np.all(error[inside] <= (scale / 2 + slack)[inside])
    else:
        table = np.asarray(q.grid.values) * np.broadcast_to(scale, x.shape)[..., None]
        nearest = np.abs(table - x[..., None].astype(np.float64)).min(axis=-1)
        assert np.all(error[inside] <= (nearest + slack)[inside])


@in_every_class
def test_values_beyond_the_range_saturate(q, x):
    _, lo, hi = steps_and_range(q, x.shape)
    y = q(x)
    assert np.all(np.where(x <= lo, y == lo.astype(np.float32), True))
    assert np.all(np.where(x >= hi, y == hi.astype(np.float32), True))


@in_every_class
def test_quantizing_again_changes_nothing(q, x):
    once = q(x)
    np.testing.assert_array_equal(q(once), once)


@in_every_class
def test_greater_numbers_have_no_lesser_results(q, x):
    for one_scale in slices(q, np.sort(x, axis=None).reshape(x.shape)):
        assert np.all(np.diff(one_scale[0][np.argsort(one_scale[1])]) >= 0)


@in_every_class
def test_no_more_values_than_codes(q, x):
    for y, _ in slices(q, x):
        assert len(np.unique(y)) <= 2**q.num_bits


@in_every_class
def test_fake_quantized_is_dequantized_codes_bit_for_bit(q, x):
    tensor = q.qparams(x.shape).quantize(x)
    fake = q(x)
    np.testing.assert_array_equal(tensor.dequantize(), fake)
    assert not np.signbit(fake[fake == 0]).any()
    assert tensor.codes.dtype == q.grid.storage_dtype


@in_every_class
def test_the_argument_is_only_read(q, x):
    x.setflags(write=False)
    before = x.copy()
    assert q(x).shape == x.shape
    np.testing.assert_array_equal(x, before)


@each_case
def test_zero_stays_exactly_zero(case):
    q = case.quantizer()  # every table of the examples holds 0
    y = q(np.zeros(case.shape(), np.float32))
    assert np.all(y == 0)


@each_case
def test_nan_stays_nan_and_infinities_saturate(case):
    q, shape = case.quantizer(), case.shape()
    _, lo, hi = steps_and_range(q, shape)
    assert np.all(np.isnan(q(np.full(shape, np.nan, np.float32))))
    np.testing.assert_array_equal(q(np.full(shape, np.inf)), np.broadcast_to(hi.astype(np.float32), shape))
    np.testing.assert_array_equal(q(np.full(shape, -np.inf)), np.broadcast_to(lo.astype(np.float32), shape))


@pytest.mark.parametrize("case", [c for c in ALL if c.layout in ("channel", "axis 0")], ids=str)
def test_per_channel_is_per_slice(case):
    q, x = case.quantizer(), awkward(case)
    y, qparams = q(x), q.qparams(x.shape)
    config = q.get_config() | {"per_channel": False, "channel_axis": None}
    for channel in range(x.shape[q.channel_axis]):
        whole = type(q).from_config(
            config | {k: config[k][channel] for k in ("threshold", "min_range", "max_range") if k in config}
        )
        index = np.take(x, channel, axis=q.channel_axis)
        np.testing.assert_array_equal(whole(index), np.take(y, channel, axis=q.channel_axis))
        assert whole.qparams(index.shape).scale.item() == qparams.scale.ravel()[channel]


@pytest.mark.parametrize("case", [c for c in ALL if c.layout == "group"], ids=str)
def test_per_group_is_per_block(case):
    q, x = case.quantizer(), awkward(case)
    y, qparams = q(x), q.qparams(x.shape)
    assert len(np.unique(qparams.scale)) == 3
    for group in range(3):
        block = slice(4 * group, 4 * group + 4)
        per_channel = q.with_qparams(qparams.scale[group : group + 1], qparams.zero_point[group : group + 1])
        np.testing.assert_array_equal(per_channel(x[block]), y[block])


@each_case
def test_configuration_survives_json(case):
    q = case.quantizer()
    record = json.loads(json.dumps(q.to_dict(), allow_nan=False))
    again = quantizer_from_dict(record)
    assert again == q
    assert hash(again) == hash(q)
    assert again.to_dict() == q.to_dict()
    np.testing.assert_array_equal(again(awkward(case)), q(awkward(case)))
    assert repr(q).startswith(type(q).__name__ + "(num_bits=")


@each_case
def test_other_parameters_are_taken_exactly(case):
    q, shape = case.quantizer(), case.shape()
    given = q.qparams(shape)
    scale = given.scale * np.float32(0.5) if "POT" in case.cls.__name__ else given.scale * np.float32(0.7123)
    other = q.with_qparams(scale, given.zero_point)
    assert type(other) is type(q)
    np.testing.assert_array_equal(other.qparams(shape).scale, scale)
    np.testing.assert_array_equal(other.qparams(shape).zero_point, given.zero_point)
    assert other.grid == q.grid
    placeholder = q.placeholder()
    assert placeholder.qparams(shape).scale.shape == given.scale.shape
    assert len(json.dumps(placeholder.get_config())) < 400


@each_class
def test_role_leads_to_the_class(name):
    cls = CLASSES[name]
    assert cls.registered_name == name
    for method in cls.quantization_method:
        assert get_quantizer_class(cls.quantization_target, method, cls.identifier) is cls


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "uint8", "bool"])
@each_class
def test_the_result_has_the_inputs_dtype(name, dtype):
    q = Case(CLASSES[name], 8).quantizer()
    x = np.float32([-3, -0.7, 0, 0.26, 1, 9]).astype(getattr(ml_dtypes, dtype, dtype))
    y = q(x)
    expected = x.dtype if "float" in dtype else np.dtype("float32")
    assert y.dtype == expected
    np.testing.assert_array_equal(y, q(x.astype(np.float32)).astype(expected))


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([1j]), np.array([None]), np.array(["2020"], "M8[D]")])
@each_class
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=r"real numbers; received dtype="):
        Case(CLASSES[name], 8).quantizer()(value)


@each_class
def test_empty_and_scalar_arrays(name):
    q = Case(CLASSES[name], 8).quantizer()
    assert q(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert q(0.0).shape == ()
    assert q([[0.0, 99.0]]).shape == (1, 2)


# The same numbers everywhere: eager, traced, compiled by XLA, torch, JAX. Every comparison is exact, signs of zero
# included, and knows no exception. One graph holds many quantizers, so that it is compiled once.
TRACED = [i for i, case in enumerate(ALL) if case.bits in (4, 16)]


@pytest.fixture(scope="module")
def expected():
    return [case.quantizer()(awkward(case)) for case in ALL]


def check(results, expected, indices=None):
    for i, result in zip(indices or range(len(ALL)), results, strict=True):
        case, wanted, y = ALL[i], expected[i], np.asarray(result)
        assert y.dtype == wanted.dtype
        np.testing.assert_array_equal(y, wanted, err_msg=str(case))
        finite = ~np.isnan(y)
        np.testing.assert_array_equal(np.signbit(y[finite]), np.signbit(wanted[finite]), err_msg=str(case))


def test_tensorflow_eager_gives_numpys_numbers(expected):
    import tensorflow as tf

    check([case.quantizer()(tf.constant(awkward(case))) for case in ALL], expected)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tensorflow_graphs_give_numpys_numbers(expected, compiled):
    import tensorflow as tf

    quantizers = [ALL[i].quantizer() for i in TRACED]
    function = tf.function(lambda xs: [q(x) for q, x in zip(quantizers, xs, strict=True)], jit_compile=compiled)
    inputs = [tf.constant(awkward(ALL[i])) for i in TRACED]
    check(function(inputs), expected, TRACED)
    check(
        [q(x) for q, x in zip(quantizers, inputs, strict=True)], expected, TRACED
    )  # nothing of the graph stuck to them


def test_torch_gives_numpys_numbers(expected):
    torch = pytest.importorskip("torch")
    check([case.quantizer()(torch.tensor(awkward(case))) for case in ALL], expected)


JAX_SCRIPT = """
import jax, numpy as np
from tests.examples import awkward, cases

ALL = cases()
inputs = [jax.numpy.asarray(awkward(case)) for case in ALL]
wanted = [case.quantizer()(awkward(case)) for case in ALL]

def check(results):
    for case, y, expected in zip(ALL, results, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(y), expected, err_msg=str(case))
        finite = ~np.isnan(expected)
        assert np.array_equal(np.signbit(np.asarray(y)[finite]), np.signbit(expected[finite])), str(case)

quantizers = [case.quantizer() for case in ALL]
check(jax.jit(lambda xs: [q(x) for q, x in zip(quantizers, xs)])(inputs))
check([q(x) for q, x in zip(quantizers, inputs)])  # after jit: no tracer stayed in them
print("cases:", len(ALL))
"""


def test_jax_gives_numpys_numbers(checkout: Path):
    pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", JAX_SCRIPT],
        cwd=checkout,
        env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"cases: {len(ALL)}" in done.stdout
