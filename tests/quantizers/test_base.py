from __future__ import annotations

import copy
import json
import pickle

import ml_dtypes
import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, PerGroup, PerTensor
from qi.errors import ConfigError, FileFormatError, InputError
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    BaseInferableQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
    get_inferable_quantizer_class,
    get_quantizer_class,
    mark_quantizer,
    quantizer_classes,
    quantizer_from_dict,
)
from qi.quantizers.base import flag, numbers

W, A = QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION
PER_CHANNEL = WeightsSymmetricInferableQuantizer(4, [1.0, 2.0, 4.0], per_channel=True)


# --- vocabulary and registry ---


def test_members_have_names_for_values_and_the_successors_spelling():
    assert QuantizationMethod.LUT_SYM_QUANTIZER is QuantizationMethod.LUT_SYM
    assert QuantizationMethod.LUT_POT_QUANTIZER is QuantizationMethod.LUT_POT
    assert all(isinstance(m.value, str) for m in [*QuantizationMethod, *QuantizationTarget])


def test_every_role_has_one_class():
    found = {(t, m): get_inferable_quantizer_class(t, m) for t, m in _ROLES}
    assert {f"{t.name} {m.name}": cls.__name__ for (t, m), cls in found.items()} == {
        "WEIGHTS SYMMETRIC": "WeightsSymmetricInferableQuantizer",
        "WEIGHTS POWER_OF_TWO": "WeightsPOTInferableQuantizer",
        "WEIGHTS UNIFORM": "WeightsUniformInferableQuantizer",
        "WEIGHTS LUT_SYM": "WeightsLUTSymmetricInferableQuantizer",
        "WEIGHTS LUT_POT": "WeightsLUTPOTInferableQuantizer",
        "ACTIVATION SYMMETRIC": "ActivationSymmetricInferableQuantizer",
        "ACTIVATION POWER_OF_TWO": "ActivationPOTInferableQuantizer",
        "ACTIVATION UNIFORM": "ActivationUniformInferableQuantizer",
        "ACTIVATION LUT_POT": "ActivationLutPOTInferableQuantizer",
    }
    for target in (W, A):
        assert all(cls.quantization_target is t for (t, _), cls in found.items() if t is target)


_ROLES = [(t, m) for t in (W, A) for m in QuantizationMethod if (t, m) != (A, QuantizationMethod.LUT_SYM)]


@pytest.mark.parametrize("role", [(A, QuantizationMethod.LUT_SYM), ("weights", None), ([], {})])
def test_a_role_nobody_has_is_refused_with_the_roles_that_exist(role):
    with pytest.raises(ConfigError, match=r"expected a registered quantizer; .*\(inferable, weights, uniform\)"):
        get_inferable_quantizer_class(*role)


def _custom(name: str = "HalfStep", method: QuantizationMethod = QuantizationMethod.UNIFORM, **where):
    cls = type(name, (WeightsUniformInferableQuantizer,), {"__module__": "mine.quantizers", "__qualname__": name})
    return mark_quantizer(W, [method], **{"identifier": f"test {name}"} | where)(cls)


def test_a_class_of_a_user_is_found_and_read_back():
    cls = _custom("Mine")
    assert cls.registered_name == "mine>Mine"
    assert get_quantizer_class(W, QuantizationMethod.UNIFORM, "test Mine") is cls
    assert quantizer_classes()["mine>Mine"] is cls
    again = quantizer_from_dict(json.loads(json.dumps(cls(4, -1, 1).to_dict())))
    assert type(again) is cls
    assert again == cls(4, -1, 1)
    assert again != WeightsUniformInferableQuantizer(4, -1, 1)


def test_a_class_defined_again_replaces_itself():
    first, second = _custom("Reloaded"), _custom("Reloaded")
    assert get_quantizer_class(W, QuantizationMethod.UNIFORM, "test Reloaded") is second is not first


def test_a_role_and_a_name_are_given_once():
    _custom("First", identifier="test taken")
    with pytest.raises(ConfigError, match=r"First already is the 'test taken' quantizer for weights .*uniform"):
        _custom("Second", identifier="test taken")
    assert "mine>Second" not in quantizer_classes()
    with pytest.raises(ConfigError, match="WeightsUniformInferableQuantizer already is"):
        _custom("WeightsUniformInferableQuantizer", package="qi", identifier="test name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights", [QuantizationMethod.UNIFORM]), "received quantization_target='weights'"),
        ((W, []), r"received quantization_method=\[\]"),
        ((W, ["uniform"]), r"received quantization_method=\['uniform'\]"),
    ],
)
def test_marks_of_wrong_types_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        mark_quantizer(*arguments)


# --- records ---


@pytest.mark.parametrize(
    "record", [None, {}, {"quantizer": 3, "config": {}}, {"quantizer": "qi>X"}, {"quantizer": "qi>X", "config": []}]
)
def test_malformed_records_are_refused(record):
    with pytest.raises(FileFormatError, match="expected a quantizer record with 'quantizer' and 'config'"):
        quantizer_from_dict(record)


def test_an_unknown_class_is_named_with_its_nearest():
    with pytest.raises(FileFormatError, match=r"import the module .* Did you mean 'qi>WeightsPOTInferableQuantizer'"):
        quantizer_from_dict({"quantizer": "qi>WeightsPOTInferableQuantiser", "config": {}})


@pytest.mark.parametrize("config", [{"num_bits": 8, "threshold": 1.0, "bits": 8}, {"threshold": 1.0}, {}])
def test_unknown_and_missing_arguments_are_refused(config):
    with pytest.raises(ConfigError, match="expected the arguments of WeightsSymmetricInferableQuantizer; received"):
        WeightsSymmetricInferableQuantizer.from_config(config)


# --- parameters of constructors ---


@pytest.mark.parametrize("value", [1, 2.5, [1, 2], (0.5,), np.float32(3), np.arange(1, 3), [[1.0]]])
def test_numbers_are_float64_and_read_only(value):
    array = numbers("x", value, positive=True)
    assert array.dtype == np.float64
    assert array.tolist() == np.asarray(value).tolist()
    assert not array.flags.writeable


def test_numbers_of_other_dtypes_and_frameworks():
    assert numbers("x", np.array([0.5], ml_dtypes.bfloat16)).tolist() == [0.5]
    assert numbers("x", np.float16([0.5])).tolist() == [0.5]
    given = np.ones(2)
    held = numbers("x", given)
    given[0] = 9
    assert held.tolist() == [1, 1]


@pytest.mark.parametrize(
    "value", [None, True, [True], "8", ["8"], [], "a", 1j, [None], [[1, 2], [3]], {"a": 1}, np.array([])], ids=repr
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="expected x to be a number or a sequence of numbers; received x="):
        numbers("x", value)


@pytest.mark.parametrize("value", [np.nan, np.inf, [1.0, -np.inf]])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match=r"expected x to be finite; received x=(nan|inf|-inf)"):
        numbers("x", value)


@pytest.mark.parametrize("value", [0, -1.0, [1.0, -0.5], np.nan])
def test_numbers_may_have_to_be_positive(value):
    with pytest.raises(ConfigError, match=r"expected x to be positive and finite; received x=(0\.0|-1\.0|-0\.5|nan)"):
        numbers("x", value, positive=True)


def test_flags_are_booleans():
    assert flag("x", np.bool_(True)) is True
    for value in (1, None, "False"):
        with pytest.raises(ConfigError, match=f"expected x to be True or False; received x={value!r}"):
            flag("x", value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_channel": 1}, "received per_channel=1"),
        ({"channel_axis": 1.5}, r"received channel_axis=1\.5"),
        ({"channel_axis": True}, "received channel_axis=True"),
        ({"input_rank": "2"}, "received input_rank='2'"),
        ({"input_rank": -1}, "received input_rank=-1"),
        ({"group_axis": 0}, "expected group_axis only with group_size; received group_axis=0"),
        ({"group_size": 4}, "expected per_channel=True with group_size; received group_size=4"),
        ({"per_channel": True, "group_size": 0}, "received group_size=0"),
        ({"per_channel": True, "group_size": 4, "group_axis": 0.5}, r"received group_axis=0\.5"),
        ({"channel_axis": 2, "input_rank": 2}, "expected channel_axis within input_rank=2; received channel_axis=2"),
        ({"channel_axis": -3, "input_rank": 2}, "received channel_axis=-3"),
    ],
)
def test_the_shape_of_parameters_is_checked_when_constructed(arguments, message):
    with pytest.raises(ConfigError, match=message):
        BaseInferableQuantizer(IntGrid(8), **arguments)


# --- granularity ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, PerTensor()),
        ({"channel_axis": 0}, PerTensor()),
        ({"per_channel": True}, PerChannel(-1)),
        ({"per_channel": True, "channel_axis": 1}, PerChannel(1)),
        ({"per_channel": True, "group_size": 2}, PerGroup(1, 2, -1)),
        ({"per_channel": True, "group_size": 2, "channel_axis": 0}, PerGroup(2, 2, 0)),
        ({"per_channel": True, "group_size": 2, "group_axis": 0}, PerGroup(0, 2, -1)),
    ],
)
def test_granularity(arguments, expected):
    assert WeightsSymmetricInferableQuantizer(8, 1.0, **arguments).granularity(3) == expected


def test_axes_are_filled_in_only_where_they_are_open():
    open_ = WeightsSymmetricInferableQuantizer(8, 1.0, per_channel=True, group_size=2)
    assert open_.with_axes(0, 1).granularity(2) == PerGroup(1, 2, 0)
    closed = WeightsSymmetricInferableQuantizer(8, 1.0, per_channel=True, channel_axis=1)
    assert closed.with_axes(0, 1).channel_axis == 1
    whole = WeightsSymmetricInferableQuantizer(8, 1.0)
    assert whole.with_axes(0, 1) == whole


def test_parameters_may_be_listed_or_shaped():
    listed = PER_CHANNEL.qparams((5, 3))
    shaped = WeightsSymmetricInferableQuantizer(4, [[1.0, 2.0, 4.0]], per_channel=True).qparams((5, 3))
    assert listed == shaped
    assert listed.scale.tolist() == [[0.125, 0.25, 0.5]]
    assert PER_CHANNEL.parameters((5, 3))["zero_point"].dtype == np.float32


@pytest.mark.parametrize("shape", [(5, 4), (3, 5), (5,), ()])
def test_wrong_numbers_of_parameters_are_refused(shape):
    with pytest.raises(InputError, match=r"expected (1 or \d values|channel_axis from)"):
        PER_CHANNEL(np.zeros(shape, np.float32))


def test_shaped_parameters_are_not_reshaped():
    q = WeightsSymmetricInferableQuantizer(4, [[1.0], [2.0], [4.0]], per_channel=True)
    with pytest.raises(InputError, match=r"received 3 \(shape \(3, 1\)\)"):
        q(np.zeros((5, 3), np.float32))


@pytest.mark.parametrize("shape", [(), (4,)])
def test_groups_need_another_axis(shape):
    q = WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True, group_size=2)
    with pytest.raises(InputError, match="expected"):
        q(np.zeros(shape, np.float32))


def test_input_rank_is_checked():
    q = WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True, channel_axis=-1, input_rank=2)
    assert q(np.ones((2, 3))).shape == (2, 3)
    with pytest.raises(InputError, match=r"rank input_rank=2; received shape=\(2, 3, 4\)"):
        q(np.ones((2, 3, 4)))


# --- calls ---


def test_a_symbolic_tensor_is_refused_with_the_way_out():
    import keras

    with pytest.raises(InputError, match=r"symbolic KerasTensor; do use qi\.KerasActivationQuantizationHolder"):
        ActivationUniformInferableQuantizer(8, 0, 1)(keras.Input((3,)))


def test_shapes_that_a_graph_doesnt_know():
    import tensorflow as tf

    unknown = tf.TensorSpec((None, None), tf.float32)
    x = np.float32([[-1.3, 0.3, 0.61]])
    whole = WeightsSymmetricInferableQuantizer(4, 1.0)
    np.testing.assert_array_equal(tf.function(whole, input_signature=[unknown])(x), whole(x))
    known = tf.TensorSpec((None, 3), tf.float32)
    np.testing.assert_array_equal(tf.function(PER_CHANNEL, input_signature=[known])(x), PER_CHANNEL(x))
    with pytest.raises(InputError, match=r"known size along channel_axis=None; received shape=\(None, None\)"):
        tf.function(PER_CHANNEL, input_signature=[unknown], autograph=False)(x)


def test_gradient_is_one_inside_the_range_and_zero_outside():
    import tensorflow as tf

    x = tf.constant([-9.0, -1.0, 0.33, 0.9, 9.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = WeightsSymmetricInferableQuantizer(4, 1.0)(x)
    assert tape.gradient(y, x).numpy().tolist() == [0, 1, 1, 0, 0]


def test_a_used_quantizer_is_copied_and_pickled():
    import tensorflow as tf

    q = WeightsSymmetricInferableQuantizer(4, [1.0, 2.0, 4.0], per_channel=True)
    x = np.float32([[0.3, 0.3, 0.3]])
    expected = q(tf.constant(x)).numpy()
    for again in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert again == q
        np.testing.assert_array_equal(again(x), expected)
        np.testing.assert_array_equal(again(tf.constant(x)), expected)


def test_ranges_of_channels():
    assert PER_CHANNEL.min_range.tolist() == [-1, -2, -4]
    assert PER_CHANNEL.max_range.tolist() == [0.875, 1.75, 3.5]
    assert PER_CHANNEL.num_bits == 4


# --- identity ---


def test_equality_is_of_class_and_arguments():
    q = WeightsSymmetricInferableQuantizer(8, 1.0)
    assert q == WeightsSymmetricInferableQuantizer(num_bits=8, threshold=np.float32(1))
    assert q != WeightsSymmetricInferableQuantizer(8, 2.0)
    assert q != 8
    assert len({q, WeightsSymmetricInferableQuantizer(8, 1.0)}) == 1


def test_repr_is_short_and_says_what_is_set():
    assert repr(WeightsSymmetricInferableQuantizer(8, 1)) == (
        "WeightsSymmetricInferableQuantizer(num_bits=8, threshold=1.0, signed=True)"
    )
    long = repr(WeightsSymmetricInferableQuantizer(8, np.linspace(1, 2, 500), per_channel=True))
    assert len(long) < 250
    assert long.endswith("...)")


def test_a_subclass_must_say_what_it_is():
    base = BaseInferableQuantizer(IntGrid(8))
    with pytest.raises(TypeError, match="_scale_zero_point"):
        base(np.ones(3))
    with pytest.raises(TypeError, match="_with"):
        base.placeholder()
