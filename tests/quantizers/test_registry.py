from __future__ import annotations

import pytest

from qi.errors import ConfigError, FileFormatError
from qi.quantizers import (
    INFERABLE,
    BaseInferableQuantizer,
    BaseTrainableQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    STEQuantizer,
    get_inferable_quantizer_class,
    get_quantizer_class,
    mark_quantizer,
    quantizer_classes,
    quantizer_from_dict,
    training_methods,
)

WEIGHTS, ACTIVATION = QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION
SYMMETRIC = QuantizationMethod.SYMMETRIC
METHODS = {"adaround", "dorefa", "lsq", "lsq_plus", "noise", "pact", "ste", "ste_learned", "stochastic", "tqt"}


def test_the_training_methods():
    assert set(training_methods()) >= METHODS
    assert list(training_methods()) == sorted(training_methods())
    assert INFERABLE not in training_methods()


@pytest.mark.parametrize("name", [name for name in quantizer_classes() if name.startswith("qi>")])
def test_every_role_leads_to_its_class(name):
    cls = quantizer_classes()[name]
    assert issubclass(cls, BaseInferableQuantizer if cls.identifier == INFERABLE else BaseTrainableQuantizer)
    for target in cls.quantization_targets:
        for method in cls.quantization_method:
            assert get_quantizer_class(target, method, cls.identifier) is cls
    assert quantizer_classes(cls.identifier)[name] is cls


def test_one_class_for_weights_and_activations_learns_its_target_from_its_configuration():
    assert (
        get_quantizer_class(WEIGHTS, SYMMETRIC, "lsq")
        is get_quantizer_class(ACTIVATION, SYMMETRIC, "lsq")
        is LSQQuantizer
    )
    assert LSQQuantizer.quantization_targets == (WEIGHTS, ACTIVATION)
    assert not hasattr(LSQQuantizer, "quantization_target")


@pytest.mark.parametrize(
    "role",
    [(WEIGHTS, SYMMETRIC, "pact"), (WEIGHTS, SYMMETRIC, "nothing"), ("weights", SYMMETRIC, "ste"), ([], 3, "ste")],
)
def test_an_unknown_role_is_refused_with_those_that_exist(role):
    with pytest.raises(
        ConfigError, match=r"expected a registered quantizer; received target=.*\(lsq, weights, symmetric\)"
    ):
        get_quantizer_class(*role)
    assert get_inferable_quantizer_class(WEIGHTS, SYMMETRIC).__name__ == "WeightsSymmetricInferableQuantizer"


def test_a_role_or_name_that_is_taken():
    with pytest.raises(
        ConfigError, match=r"LSQQuantizer already is the 'lsq' quantizer for weights .*; do give Mine another"
    ):
        mark_quantizer(WEIGHTS, [SYMMETRIC], "lsq")(type("Mine", (LSQQuantizer,), {}))
    with pytest.raises(ConfigError, match="already is"):
        mark_quantizer(WEIGHTS, [SYMMETRIC], "new", package="qi")(type("STEQuantizer", (LSQQuantizer,), {}))
    assert get_quantizer_class(WEIGHTS, SYMMETRIC, "lsq") is LSQQuantizer
    assert "new" not in training_methods()


@pytest.mark.parametrize(
    ("target", "methods", "message"),
    [
        ("weights", [SYMMETRIC], "expected a QuantizationTarget; received quantization_target='weights'"),
        ([], [SYMMETRIC], r"received quantization_target=\[\]"),
        (WEIGHTS, ["symmetric"], "expected a list of QuantizationMethod"),
        (WEIGHTS, [], "expected a list of QuantizationMethod"),
    ],
)
def test_marks_are_checked(target, methods, message):
    with pytest.raises(ConfigError, match=message):
        mark_quantizer(target, methods, "x")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"quantizer": "qi>STEQuantiser", "config": {}},
            "do import the module that defines it first. Did you mean 'qi>STEQ",
        ),
        ({"quantizer": "qi>STEQuantizer"}, "expected a quantizer record"),
        (None, "expected a quantizer record"),
    ],
)
def test_records_that_are_no_quantizers(record, message):
    with pytest.raises(FileFormatError, match=message):
        quantizer_from_dict(record)
    assert STEQuantizer.registered_name == "qi>STEQuantizer"
