from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.core import IntGrid, PerTensor
from qi.dispatch import Slot
from qi.errors import ConfigError
from qi.ledger.outcomes import describe_granularity
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import TensorSpec
from qi.recipes.choose import activation_quantizer, weight_quantizer
from qi.recipes.plan import Group

KERNEL = Slot("kernel")
RNG = np.random.default_rng(0)
WEIGHT = (RNG.normal(size=(3, 3, 8, 5)) * np.geomspace(0.01, 10, 5)).astype("float32")


def scale_of(quantizer: BaseInferableQuantizer, shape: tuple[int, ...] = (1,)) -> np.ndarray:
    return quantizer.parameters(shape)["scale"]


def seen(*values: float) -> TensorStatistics:
    statistics = TensorStatistics()
    statistics.update(np.array(values, "float32"))
    return statistics


def group(fixed: tuple[float, float] | None = None, **spec: object) -> Group:
    return Group(TensorSpec(**spec), fixed, names=["net/layer"])


@pytest.mark.parametrize("bits", range(2, 17))
def test_symmetric_weights_are_narrow_and_reach_the_greatest_magnitude(bits: int) -> None:
    quantizer = weight_quantizer(WEIGHT, TensorSpec(bits=bits, granularity="per_channel"), KERNEL)
    scale = scale_of(quantizer, WEIGHT.shape)
    assert scale.shape == (1, 1, 1, 5)
    top = 2 ** (bits - 1) - 1
    expected = np.abs(WEIGHT).max((0, 1, 2)).astype(np.float64) / top
    np.testing.assert_array_equal(scale.ravel(), expected.astype(np.float32))
    assert quantizer.grid == IntGrid(bits, narrow=True)
    codes = quantizer.qparams(WEIGHT.shape).quantize(WEIGHT).codes
    assert (abs(int(codes.min())), abs(int(codes.max()))) <= (top, top)
    assert np.array_equal(np.abs(codes).max((0, 1, 2)), [top] * 5)
    assert not quantizer.parameters(WEIGHT.shape)["zero_point"].any()
    values = quantizer(WEIGHT).reshape(-1, 5)
    assert max(len(np.unique(values[:, c])) for c in range(5)) <= 2**bits - 1


def test_one_bit_has_no_narrow_grid() -> None:
    assert weight_quantizer(WEIGHT, TensorSpec(bits=1), KERNEL).grid.levels == 2


@pytest.mark.parametrize(
    ("granularity", "size", "shape"),
    [("per_tensor", None, (1, 1, 1, 1)), ("per_channel", None, (1, 1, 1, 5)), ("per_group", 4, (1, 1, 2, 5))],
)
@pytest.mark.parametrize("method", ["symmetric", "power_of_two", "uniform"])
def test_scales_have_the_shape_that_is_asked_for(
    granularity: str, size: int, shape: tuple[int, ...], method: str
) -> None:
    spec = TensorSpec(bits=8, method=method, granularity=granularity, group_size=size)
    quantizer = weight_quantizer(WEIGHT, spec, KERNEL)
    scale = scale_of(quantizer, WEIGHT.shape)
    assert scale.shape == shape
    steps = np.broadcast_to(quantizer.granularity(4).expand(scale, WEIGHT.shape), WEIGHT.shape)
    limit = 1.01 if method == "power_of_two" else 0.501  # the highest code may lie one step below a power of two
    assert np.all(np.abs(quantizer(WEIGHT) - WEIGHT) <= limit * steps)


def test_groups_fall_back_to_channels_where_the_slot_names_no_axis() -> None:
    spec = TensorSpec(bits=4, granularity="per_group", group_size=4)
    quantizer = weight_quantizer(WEIGHT, spec, Slot("kernel", channel_axis=-2, input_axis=None))
    assert scale_of(quantizer, WEIGHT.shape).shape == (1, 1, 8, 1)
    assert describe_granularity(quantizer, 4) == "per channel (axis 2)"


def test_powers_of_two_are_powers_of_two() -> None:
    spec = TensorSpec(bits=8, method="power_of_two", granularity="per_channel")
    scale = scale_of(weight_quantizer(WEIGHT, spec, KERNEL), WEIGHT.shape)
    np.testing.assert_array_equal(np.exp2(np.round(np.log2(scale))), scale)


def test_uniform_weights_span_from_the_least_to_the_greatest() -> None:
    weight = np.array([[0.0, -3.0], [5.1, 1.0]], "float32")
    spec = TensorSpec(bits=8, method="uniform", granularity="per_channel")
    quantizer = weight_quantizer(weight, spec, KERNEL)
    np.testing.assert_allclose(scale_of(quantizer, (2, 2)).ravel(), [0.02, 4 / 255], rtol=1e-6)
    np.testing.assert_allclose(quantizer(weight), weight, atol=0.01)


def test_uniform_weights_have_no_other_range() -> None:
    with pytest.raises(
        ConfigError, match="expected range='minmax' for weights with method='uniform'; received range='mse'"
    ):
        weight_quantizer(WEIGHT, TensorSpec(bits=4, method="uniform", range="mse"), KERNEL)


@pytest.mark.parametrize("method", ["symmetric", "power_of_two", "uniform"])
def test_a_channel_of_zeros_stays_zero(method: str) -> None:
    weight = np.array([[0.0, 1.0], [0.0, -0.5]], "float32")
    quantizer = weight_quantizer(weight, TensorSpec(bits=8, method=method, granularity="per_channel"), KERNEL)
    found = quantizer(weight)
    np.testing.assert_array_equal(found[:, 0], 0.0)
    np.testing.assert_allclose(found[:, 1], weight[:, 1], atol=0.01)


def test_least_squares_lose_less_than_extremes_at_low_bits() -> None:
    weight = RNG.standard_t(3, size=(64, 8)).astype("float32")
    errors = {}
    for name in ("minmax", "mse"):
        spec = TensorSpec(bits=3, granularity="per_channel", range=name)
        errors[name] = np.square(weight_quantizer(weight, spec, KERNEL)(weight) - weight).mean()
    assert errors["mse"] < 0.8 * errors["minmax"]


def test_options_reach_the_selection() -> None:
    weight = RNG.standard_t(3, size=(64, 8)).astype("float32")
    scales = [
        scale_of(
            weight_quantizer(weight, TensorSpec(bits=3, range="mse", range_options={"norm": norm}), KERNEL), (1, 1)
        )
        for norm in (2.0, 8.0)
    ]
    assert scales[0] < scales[1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("fixed", "step", "zero_point"), [((0.0, 1.0), 1.0, 0.0), ((-1.0, 1.0), 2.0, 0.5)], ids=["softmax", "tanh"]
)
def test_known_ranges_have_the_grid_that_runtimes_demand(
    fixed: tuple[float, float], step: float, zero_point: float, bits: int
) -> None:
    quantizer = activation_quantizer(group(fixed, bits=bits, method="uniform"), None)
    parameters = quantizer.parameters((1,))
    assert parameters["scale"].item() == step / 2**bits  # 1/256 and 1/128 at 8 bits
    assert parameters["zero_point"].item() == quantizer.grid.qmin + zero_point * 2**bits
    assert quantizer.grid.levels == 2**bits


@pytest.mark.parametrize("fixed", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("method", ["symmetric", "power_of_two"])
def test_known_ranges_have_a_16_bit_grid_about_zero(fixed: tuple[float, float], method: str) -> None:
    parameters = activation_quantizer(group(fixed, bits=16, method=method), None).parameters((1,))
    assert (parameters["scale"].item(), parameters["zero_point"].item()) == (2.0**-15, 0.0)


def test_uniform_activations_span_what_was_seen_and_zero() -> None:
    quantizer = activation_quantizer(group(bits=8, method="uniform"), seen(0.5, 2.55))
    assert quantizer.parameters((1,))["scale"].item() == pytest.approx(0.01)
    assert quantizer.parameters((1,))["zero_point"].item() == 0
    quantizer = activation_quantizer(group(bits=8, method="uniform"), seen(-1.0, 1.55))
    assert quantizer.parameters((1,))["zero_point"].item() == 100


def test_symmetric_activations_reach_the_greatest_magnitude() -> None:
    quantizer = activation_quantizer(group(bits=16), seen(-3.0, 1.0))
    assert quantizer.parameters((1,))["scale"].item() == np.float32(3 / 32767)
    assert quantizer(np.array([-3.0, 0.0], "float32")).tolist() == pytest.approx([-3.0, 0.0])


def test_power_of_two_activations_have_a_power_of_two_threshold() -> None:
    quantizer = activation_quantizer(group(bits=8, method="power_of_two"), seen(-3.0, 1.0))
    assert quantizer.parameters((1,))["scale"].item() == 4 / 128


@pytest.mark.parametrize("method", ["symmetric", "power_of_two", "uniform"])
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_a_constant_activation_is_kept(method: str, value: float) -> None:
    quantizer = activation_quantizer(group(bits=8, method=method), seen(value, value))
    assert quantizer(np.array([value], "float32"))[0] == pytest.approx(value, rel=0.02)
    assert quantizer(np.zeros(1, "float32"))[0] == 0.0


def test_a_group_without_statistics_is_named() -> None:
    with pytest.raises(ConfigError, match="expected statistics for 'net/layer'; received none; do calibrate"):
        activation_quantizer(group(bits=8), None)


def test_granularity_in_words() -> None:
    words = {
        name: describe_granularity(
            weight_quantizer(WEIGHT, TensorSpec(bits=4, granularity=name, group_size=size), KERNEL), 4
        )
        for name, size in [("per_tensor", None), ("per_channel", None), ("per_group", 4)]
    }
    assert words == {
        "per_tensor": "per tensor",
        "per_channel": "per channel (axis 3)",
        "per_group": "per group of 4 (axis 2)",
    }


@settings(max_examples=50)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20),
    st.sampled_from(["symmetric", "power_of_two", "uniform"]),
    st.integers(2, 16),
)
def test_what_was_seen_is_represented_within_a_step(values: list[float], method: str, bits: int) -> None:
    x = np.array(values, "float32")
    quantizer = activation_quantizer(group(bits=bits, method=method), seen(*values))
    step = quantizer.parameters((1,))["scale"].item()
    assert quantizer.granularity(1) == PerTensor()
    assert np.all(np.abs(quantizer(x) - x) <= 1.001 * step)
    assert quantizer(np.zeros(1, "float32"))[0] == 0.0
