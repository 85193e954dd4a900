from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.quantizers import (
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
    BaseTrainableQuantizer,
    LearnedRangeQuantizer,
    LSQQuantizer,
    STEQuantizer,
    TQTQuantizer,
    TrainableQuantizerWeightsConfig,
    WeightsSymmetricInferableQuantizer,
)
from qi.quantizers.trainable import HUGE, TINY, positive
from tests.quantizers.common import POT, SYMMETRIC, UNIFORM, X, activations, declared, weights


@pytest.mark.parametrize(
    ("variable", "expected"), [(0.3, 0.3), (-0.3, 0.3), (0.0, TINY), (1e-45, TINY), (-3e38, HUGE), (float("inf"), HUGE)]
)
def test_a_step_is_positive(variable, expected):
    found = positive(np.float32([variable]))
    assert found.tolist() == [np.float32(expected)]
    assert found.dtype == np.float32


def test_the_least_and_the_greatest_step_leave_room_for_every_code():
    assert np.finfo(np.float32).tiny <= TINY / 2**16
    assert np.isfinite(HUGE * np.float32(2**17))


def test_by_itself():
    quantizer = weights(LearnedRangeQuantizer, SYMMETRIC, 4)
    with pytest.raises(NotCalibratedError, match=r"do wrap a layer with it and build that, or call initialize"):
        quantizer(X)
    assert quantizer.initialize(X) is quantizer
    assert set(quantizer.variables) == {"threshold"}
    inferable = quantizer.convert2inferable()
    assert isinstance(inferable, WeightsSymmetricInferableQuantizer)
    np.testing.assert_array_equal(quantizer(X), inferable(X))
    np.testing.assert_array_equal(quantizer(X.tolist()), inferable(X))
    quantizer.bind({"threshold": np.float32([[0.5]])})
    assert quantizer.convert2inferable().threshold == 0.5


@pytest.mark.parametrize(
    ("quantizer", "threshold"),
    [
        (weights(STEQuantizer, SYMMETRIC, 8, threshold=2.0), 2.0),
        (weights(STEQuantizer, POT, 8, threshold=2.1), 4.0),
        (weights(STEQuantizer, POT, 8), 2 ** np.ceil(np.log2(np.abs(X).max()))),
        (weights(STEQuantizer, SYMMETRIC, 8), np.abs(X).max() * 128 / 127),
    ],
    ids=["given", "rounded up", "power of two", "its own"],
)
def test_the_first_range(quantizer, threshold):
    np.testing.assert_allclose(declared(quantizer)["scale"] * 128, [[threshold]], rtol=1e-6)


def test_no_first_threshold_is_below_min_threshold():
    for method, expected in ((SYMMETRIC, 5.0 / 127), (POT, 8.0 / 128)):
        config = TrainableQuantizerWeightsConfig(method, 8, weights_per_channel_threshold=False, min_threshold=5.0)
        np.testing.assert_allclose(declared(STEQuantizer(config), X / 100)["scale"], [[expected]], rtol=1e-6)


def test_ranges_that_do_not_fit():
    quantizer = weights(STEQuantizer, SYMMETRIC, 4, per_channel=True, threshold=[1.0, 2.0])
    with pytest.raises(InputError, match=r"expected 1 or 3 thresholds for a tensor of shape \(40, 3\); received 2"):
        quantizer.declare(X.shape, X)
    with pytest.raises(NotCalibratedError, match=r"do give threshold .* or calibrate"):
        activations(STEQuantizer, SYMMETRIC).declare((1,), None)
    with pytest.raises(NotCalibratedError):
        weights(STEQuantizer, SYMMETRIC).declare((1,), np.float32([np.nan]))


@pytest.mark.parametrize(
    ("inferable", "quantizer"),
    [
        (ActivationSymmetricInferableQuantizer(4, 1.3, signed=False), activations(STEQuantizer, SYMMETRIC, 4)),
        (ActivationUniformInferableQuantizer(4, -0.3, 1.9), activations(LearnedRangeQuantizer, UNIFORM, 4)),
        (ActivationUniformInferableQuantizer(4, -0.3, 1.9), activations(LSQQuantizer, UNIFORM, 4)),
    ],
)
def test_it_starts_where_an_inferable_quantizer_stands(inferable, quantizer):
    started = quantizer.with_initial(inferable, (1,))
    started.bind(declared(started, np.zeros(1)))
    np.testing.assert_allclose(started(X), inferable(X), rtol=1e-6, atol=1e-6)
    again = type(started).from_config(started.get_config())  # one range stays in the configuration
    first, second = declared(started, np.zeros(1)), declared(again, np.zeros(1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-6)


def test_it_starts_with_an_inferable_quantizers_channels_and_narrow_grid():
    inferable = WeightsSymmetricInferableQuantizer(
        4, [0.5, 1.0, 3.0], per_channel=True, channel_axis=-1, narrow_range=True
    )
    started = weights(LSQQuantizer, SYMMETRIC, 4, per_channel=True).with_initial(inferable, X.shape)
    np.testing.assert_array_equal(declared(started)["step"].ravel() * 8, [0.5, 1.0, 3.0])
    assert started.grid.narrow
    kept = started.with_axes(-1)
    np.testing.assert_array_equal(declared(kept)["step"], declared(started)["step"])
    assert kept.channel_axis == -1


def test_a_placeholder_holds_no_arrays():
    quantizer = weights(STEQuantizer, SYMMETRIC, 4, per_channel=True, threshold=[0.5, 1.0, 3.0], narrow_range=True)
    assert quantizer.placeholder().spec.params == {"narrow_range": True}
    one = weights(STEQuantizer, SYMMETRIC, 4, threshold=0.5)
    assert one.placeholder() == one


def test_disabled_it_passes_everything():
    quantizer = STEQuantizer(TrainableQuantizerWeightsConfig(SYMMETRIC, 2, enable_weights_quantization=False))
    assert quantizer.initialize(X)(X) is X


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_variables_are_not_converted(value):
    quantizer = weights(LSQQuantizer, SYMMETRIC)
    with pytest.raises(
        InputError, match=r"expected finite variables; received NaN or infinity in \['step'\]; training diverged"
    ):
        quantizer.to_inferable({"step": np.float32([[value]])})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LSQQuantizer(None),
            "expected a TrainableQuantizerWeightsConfig or .*; received quantization_config=None",
        ),
        (
            lambda: weights(TQTQuantizer, SYMMETRIC),
            r"expected a method of \['power_of_two'\] for TQTQuantizer; received 'symmetric'",
        ),
        (
            lambda: LSQQuantizer(TrainableQuantizerWeightsConfig(SYMMETRIC, 4), estimator="x"),
            "gradient estimator; received 'x'",
        ),
        (lambda: LSQQuantizer.from_config({"bits": 4}), "TrainableQuantizer"),
        (lambda: LSQQuantizer.from_config({}), "expected a TrainableQuantizerWeightsConfig"),
        (lambda: weights(LSQQuantizer, SYMMETRIC, 1, narrow_range=True), "narrow_range"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_a_subclass_has_to_give():
    class Bare(BaseTrainableQuantizer):
        quantization_targets, quantization_method = LSQQuantizer.quantization_targets, LSQQuantizer.quantization_method

    bare = Bare(TrainableQuantizerWeightsConfig(SYMMETRIC, 4))
    with pytest.raises(TypeError, match="Bare defines no scale_zero_point"):
        bare.apply(X, {})
    with pytest.raises(TypeError, match="Bare defines no declare"):
        bare.declare((1,))
