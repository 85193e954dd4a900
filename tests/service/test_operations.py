from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig
from qi.errors import InputError, NotCalibratedError, QiError
from qi.service import latest, operations
from qi.service.formats import Limits
from qi.service.instances import Change, Instance, Instances
from qi.service.operations import Result, channels_of, check_array, quantize_dequantize, stats
from qi.service.store import Store

X = np.array([[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], np.float32)


@pytest.fixture
def instances(store: Store) -> Instances:
    return Instances(store, QuantizationConfig(symmetric=False, error_on_nan=True))


def changed(instances: Instances, change: Change) -> Instance:
    return instances.commit(instances.changed(instances.get(), change))


def made(instances: Instances, **fields: Any) -> Instance:
    return changed(instances, operations.configuring(QuantizationConfig(**fields)))


def quantize(instance: Instance, array: np.ndarray, **options: Any) -> Result:
    """As the service does where stores remember: what is to be kept is."""
    result = operations.quantize(instance, array, **{"remember": True, **options})
    if result.kept is not None:
        latest.keep(instance, result.kept)
    return result


def dequantize(instance: Instance, array: np.ndarray, **options: Any) -> Result:
    """As the service does, with the latest parameters."""
    if operations.reads_latest(instance, **options):
        options["recalled"] = latest.recall(instance, options.get("layer_name"))
    return operations.dequantize(instance, array, **options)


def test_parameters_come_with_codes(instances: Instances) -> None:
    result = quantize(instances.get(), X)
    meta = result.meta
    assert result.array.dtype == np.int8
    assert (meta["quantization_type"], meta["original_shape"], meta["num_bits"]) == ("INT8", [2, 3], 8)
    assert (meta["channel_dim"], meta["dtype"], meta["params_rev"]) == (None, "int8", instances.get().revision)
    numbers = (result.array.astype(np.float64) - meta["zero_point"]) * meta["scale"]
    assert np.abs(numbers - X).max() <= meta["scale"] / 2 * (1 + 1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_have_their_own(axis: int, instances: Instances) -> None:
    instance = made(instances, per_channel=True)
    result = quantize(instance, X, channel_dim=axis)
    assert len(result.meta["scale"]) == X.shape[axis]
    back = dequantize(instance, result.array).array
    assert np.abs(back - X).max() <= max(result.meta["scale"]) / 2 * (1 + 1e-5)
    sent = {name: result.meta[name] for name in ("scale", "zero_point", "channel_dim")}
    assert np.array_equal(dequantize(instance, result.array, **sent).array, back)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint4", "int2", "float16", "none", "mixed"])
def test_every_type_comes_back(kind: str, instances: Instances) -> None:
    instance = made(instances, quantization_type=kind)
    result = quantize(instance, X)
    back = dequantize(instance, result.array).array
    both = quantize_dequantize(instance, X).array
    assert np.array_equal(back, both)
    assert (back.shape, back.dtype) == (X.shape, np.float32)
    assert result.meta["quantization_type"] == kind.upper()
    assert (result.meta["scale"] is None) == (kind in ("float16", "none"))


def test_codes_are_read_by_the_parameters_sent_along(instances: Instances) -> None:
    """Two clients of one instance don't mix."""
    instance = instances.get()
    first, second = quantize(instance, X), quantize(instance, 100 * X)
    sent = {name: first.meta[name] for name in ("scale", "zero_point")}
    assert np.allclose(dequantize(instance, first.array, **sent).array, X, atol=0.02)
    assert np.allclose(dequantize(instance, second.array).array, 100 * X, atol=2)


def test_another_process_reads_codes_by_the_latest_parameters(store: Store) -> None:
    here, there = Instances(store), Instances(store)
    there.get().quantizer.quantize(1000 * X)  # what it has itself is older
    codes = quantize(here.get(), X).array
    own = dequantize(here.get(), codes).array
    assert np.array_equal(dequantize(there.get(), codes).array, own)
    later = quantize(there.get(), 5 * X)
    assert np.allclose(dequantize(here.get(), later.array).array, 5 * X, atol=0.2)
    assert stats(here.get())["quantize_calls"] == 1


def test_layers_have_latest_parameters_of_their_own(store: Store) -> None:
    here, there = Instances(store), Instances(store)
    codes = {name: quantize(here.get(), factor * X, layer_name=name).array for name, factor in (("a", 1), ("b", 50))}
    for instances in (here, there):
        for name, factor in (("a", 1), ("b", 50)):
            back = dequantize(instances.get(), codes[name], layer_name=name).array
            assert np.allclose(back, factor * X, atol=0.04 * factor)


def test_what_is_not_to_be_remembered_is_not(instances: Instances) -> None:
    instance = instances.get()
    codes = quantize(instance, X).array
    before = dequantize(instance, codes).array
    quantize(instance, 100 * X, remember=False)
    quantize_dequantize(instance, 100 * X)
    assert np.array_equal(dequantize(instance, codes).array, before)
    assert stats(instance)["last_scale"] == pytest.approx(900 / 255, rel=1e-3)


def test_repeated_codes_are_found_again(instances: Instances) -> None:
    instance = instances.get()
    codes = quantize(instance, X).array
    for _ in range(5):
        dequantize(instance, codes)
    found = stats(instance)
    assert (found["cache_hits"], found["cache_misses"], found["dequantize_calls"]) == (4, 1, 5)


def test_nothing_is_read_without_parameters(instances: Instances) -> None:
    advice = "do: send scale and zero_point, calibrate the instance, or quantize with remember=true$"
    with pytest.raises(NotCalibratedError, match=advice):
        dequantize(instances.get(), np.zeros((2, 2), np.int8))


def test_who_needs_calibration_is_not_told_of_methods(instances: Instances) -> None:
    instance = made(instances, quantization_mode="static")
    advice = "do: calibrate the instance, import parameters, or choose a dynamic mode$"
    for operation in (quantize, quantize_dequantize):
        with pytest.raises(NotCalibratedError, match=advice):
            operation(instance, X)
    with pytest.raises(NotCalibratedError, match=r"do: send scale and zero_point, calibrate .* import parameters$"):
        dequantize(instance, np.zeros((2, 2), np.int8))


def test_fixed_parameters_go_first(instances: Instances) -> None:
    codes = quantize(instances.get(), X).array
    instance = changed(instances, operations.calibrating([2 * X]))
    found = operations.calibrated(instance)
    assert (found["params_rev"], instances.get()) == (instance.revision, instance)
    assert found["scale"] == pytest.approx(18 / 255)
    assert np.allclose(dequantize(instance, codes).array, 2 * X, atol=0.04)
    assert stats(instance)["last_scale"] == found["scale"]


def test_calibration_per_channel(instances: Instances) -> None:
    made(instances, per_channel=True, symmetric=False)
    found = operations.calibrated(changed(instances, operations.calibrating([X, X[:, :2]], channel_dim=0)))
    assert (found["channel_dim"], len(found["scales"]), len(found["zero_points"])) == (0, 2, 2)
    assert found["scale"] == pytest.approx(9 / 255)


def test_validate_false_lets_nan_pass(instances: Instances) -> None:
    instance, nan = instances.get(), np.array([np.nan, 1.0])
    for operation in (quantize, quantize_dequantize):
        with pytest.raises(InputError, match="NaN"):
            operation(instance, nan)
        assert operation(instance, nan, validate=False).array.shape == (2,)
    assert dequantize(instance, quantize(instance, nan, validate=False).array).array.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("channel_dim", [2, -3])
def test_a_channel_dimension_has_to_be_there(channel_dim: int, instances: Instances) -> None:
    with pytest.raises(InputError, match="channel_dim"):
        quantize(instances.get(), X, channel_dim=channel_dim)
    with pytest.raises(InputError, match="channel_dim"):
        dequantize(instances.get(), X.astype(np.int8), channel_dim=channel_dim)


def test_a_channel_dimension_has_no_effect_without_channels(instances: Instances) -> None:
    assert quantize(instances.get(), X, channel_dim=1).meta["channel_dim"] is None


@pytest.mark.parametrize(
    ("codes", "told"),
    [([1.5], "whole numbers"), ([np.nan], "whole numbers"), ([1e300], "whole numbers"), ([200], "-128 to 127")],
)
def test_codes_are_checked(codes: list[float], told: str, instances: Instances) -> None:
    with pytest.raises(InputError, match=told):
        dequantize(instances.get(), np.array(codes), scale=1.0, zero_point=0)


def test_whole_numbers_are_codes_whatever_their_type(instances: Instances) -> None:
    found = dequantize(instances.get(), np.array([1.0, -2.0]), scale=0.5, zero_point=1).array
    assert found.tolist() == [0.0, -1.5]
    assert dequantize(instances.get(), np.empty((0, 3)), scale=1.0, zero_point=0).array.shape == (0, 3)


@pytest.mark.parametrize(
    "sent",
    [
        {"scale": 1.0},
        {"zero_point": 1},
        {"scale": [1.0], "zero_point": 0},
        {"scale": 0.0, "zero_point": 0},
        {"scale": 1.0, "zero_point": 0.5},
        {"scale": [1.0, 1.0, 1.0], "zero_point": [0, 0, 0]},
        {"scale": [1.0, 1.0], "zero_point": [0]},
        {"scale": [], "zero_point": []},
    ],
)
def test_parameters_sent_along_are_checked(sent: dict[str, Any], instances: Instances) -> None:
    with pytest.raises(QiError):
        dequantize(instances.get(), np.zeros((2, 2), np.int8), **sent)


def test_skipped_layers_stay_as_they_are(instances: Instances) -> None:
    instance = made(instances, skip_layers=["a"])
    result = quantize(instance, X, layer_name="a")
    assert np.array_equal(result.array, X)
    assert (result.meta["quantization_type"], result.meta["scale"]) == ("NONE", None)
    assert np.array_equal(dequantize(instance, X, layer_name="a").array, X)
    assert operations.layer_params(instance, "a/b") == {"bits": 8, "type": "INT8", "skip": False}


def test_layers_of_their_own_type(instances: Instances) -> None:
    instance = made(instances, enable_mixed_precision=True, mixed_precision_layers=["a"])
    result = quantize(instance, X, layer_name="a")
    assert (result.meta["quantization_type"], result.array.dtype) == ("INT16", np.int16)
    assert np.allclose(dequantize(instance, result.array, layer_name="a").array, X, atol=1e-3)
    with pytest.raises(NotCalibratedError):
        dequantize(instance, result.array.astype(np.int8))


def test_compute_params_changes_nothing(instances: Instances) -> None:
    instance = instances.get()
    before = instance.quantizer.export_parameters()
    assert operations.compute_params(instance, X)["scale"] == pytest.approx(9 / 255)
    assert operations.compute_params(instance, X, channel_idx=0)["scale"] == pytest.approx(5.6 / 255)
    assert (instance.quantizer.export_parameters(), instances.get()) == (before, instance)


def test_by_default_the_store_says_what_is_remembered(instances: Instances) -> None:
    kept = operations.quantize(instances.get(), X).kept
    assert (kept is not None) is instances.store.remembers
    assert operations.quantize(instances.get(), X, remember=False).kept is None


def test_an_array_without_numbers_tells_nothing(instances: Instances) -> None:
    instance = made(instances, per_channel=True)
    codes = quantize(instance, X).array
    before = dequantize(instance, codes).array
    empty = quantize(instance, np.empty((0, 3)))
    assert empty.kept is None
    assert dequantize(instance, empty.array).array.shape == (0, 3)
    assert np.array_equal(dequantize(instance, codes).array, before)


def test_codes_of_fractions_are_found_wherever_they_are(instances: Instances) -> None:
    codes = np.zeros(operations._BLOCK + 10)
    codes[-1] = 3
    assert dequantize(instances.get(), codes, scale=0.5, zero_point=1).array[-1] == 1.0
    assert dequantize(instances.get(), np.array([1, 2], np.float16), scale=0.5, zero_point=1).array.tolist() == [0, 0.5]
    signalling = np.array([0x7F800001, 0], np.uint32).view(np.float32)
    for odd in (signalling, np.array([np.inf], np.float16)):
        with pytest.raises(InputError, match="whole numbers"):
            dequantize(instances.get(), odd, scale=0.5, zero_point=1)
    for bad in (0.5, np.nan, 2.0**40):
        codes[-1] = bad
        with pytest.raises(InputError, match="expected codes"):
            dequantize(instances.get(), codes, scale=0.5, zero_point=1)


def test_how_many_channels_there_are(instances: Instances) -> None:
    one, many = instances.get(), made(instances, per_channel=True)
    assert channels_of(one, X, channel_dim=1) == 1
    assert channels_of(one, X, channel_dim=1, scale=[1.0], zero_point=[0], remember=False) == 3
    assert [channels_of(many, X, channel_dim=axis) for axis in (None, 0, 1, -1)] == [2, 2, 3, 3]
    assert channels_of(many, np.array(1.0)) == 1
    own = {"l": {"per_channel": True}}
    layers = made(instances, enable_mixed_precision=True, custom_quantization_config=own)
    assert (channels_of(layers, X, layer_name="l"), channels_of(layers, X)) == (2, 1)


def test_limits() -> None:
    assert check_array(X, Limits(6, 2, 3), 3) is X
    for limits, told in ((Limits(5, 2), "5 numbers"), (Limits(6, 1), "1 dimensions"), (Limits(6, 2, 2), "2 channels")):
        with pytest.raises(InputError, match=f"at most {told}"):
            check_array(X, limits, 3)
