"""Clauses on configuration: nothing is lost on the way through a file, and nonsense is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from qi.errors import ConfigError, InputError, NotCalibratedError, QiError
from qi.quantizers import (
    QuantizationMethod,
    QuantizationTarget,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    get_quantizer_class,
    quantizer_from_dict,
)
from qi.testing.cases import Case
from qi.testing.registry import CLAUSES, expect, expect_same, fail

__all__ = ["config", "refusals"]

_CONFIGS = {
    QuantizationTarget.WEIGHTS: TrainableQuantizerWeightsConfig,
    QuantizationTarget.ACTIVATION: TrainableQuantizerActivationConfig,
}
_METHODS = (QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM)


@CLAUSES.register("config")
def config(cases: Sequence[Case]) -> int:
    """get_config, from_config, to_dict and JSON give an equal quantizer back, and its role leads to the class."""
    for case in cases:
        cls, quantizer = case.cls, case.quantizer()
        role = get_quantizer_class(case.target, case.method, cls.identifier)
        expect(role is cls, "config", case, f"expected its role to lead to {cls.__name__}; received {role.__name__}")
        _check_arguments(case)
        try:
            record = json.loads(json.dumps(quantizer.to_dict(), allow_nan=False))
        except (TypeError, ValueError) as error:
            fail("config", case, f"expected plain JSON of get_config(); received {quantizer.get_config()} ({error})")
        for again in (cls.from_config(quantizer.get_config()), quantizer_from_dict(record)):
            expect(type(again) is cls, "config", case, f"expected a {cls.__name__} back; received {again!r}")
            expect(again == quantizer, "config", case, f"expected an equal quantizer back; received {again!r}")
            expect(hash(again) == hash(quantizer), "config", case, "expected equal quantizers to have one hash")
            _check_behaviour(case, again)
        structure = quantizer.with_axes(-1).placeholder()
        expect(
            type(structure) is cls,
            "config",
            case,
            f"expected a {cls.__name__} of placeholder(); received {structure!r}",
        )
        expect(
            structure.grid == quantizer.grid,
            "config",
            case,
            f"expected placeholder() to keep the grid {quantizer.grid}",
        )
    return len(cases)


def _check_arguments(case: Case) -> None:
    """Every argument is in get_config(), or has its default (which get_config() may leave out)."""
    for name, parameter in inspect.signature(case.cls).parameters.items():
        if name in case.options:
            candidates = [case.options]
        else:
            candidates = [{**case.options, name: value} for value in _others(parameter.default)]
        for options in candidates:
            try:
                record = replace(case, options=options).quantizer().get_config()
            except QiError:  # a guess that isn't legal
                continue
            if name not in record:
                problem = f"expected get_config() to hold {name}={options[name]!r}; received {sorted(record)}"
                fail("config", case, problem)


def _others(default: Any) -> list[Any]:
    """Values that an argument with this default may have, too."""
    if isinstance(default, bool):
        return [not default]
    return [default + 1, default / 2] if isinstance(default, (int, float)) else []


def _check_behaviour(case: Case, again: Any) -> None:
    quantizer, variables = case.start()
    shape, x = (case.values().shape, case.values()) if case.target is QuantizationTarget.WEIGHTS else ((1,), None)
    for item in again.declare(shape, x):
        expect_same(item.value, variables[item.name], "config", case, f"the first {item.name!r} of its original")
    for seed in (0, 7):
        values = case.values(seed)
        result = again.apply(values, variables)
        expect_same(result, quantizer.apply(values, variables), "config", case, "the result of its original")


def _refused(case: Case, what: str, error: type[QiError], call: Callable[[], Any]) -> int:
    try:
        answer = repr(call())
    except error as found:
        expect(
            "expected" in str(found), "refusals", case, f"expected a message 'expected ...; received ...' for {what}"
        )
        return 1
    except Exception as found:
        answer = f"{type(found).__name__}: {found}"
    return fail("refusals", case, f"expected {error.__name__} for {what}; received {answer}")


@CLAUSES.register("refusals")
def refusals(cases: Sequence[Case]) -> int:
    """Targets and methods that the class doesn't know, and variables that no number came of, are refused."""
    count = 0
    for case in {(c.target, c.method): c for c in cases}.values():
        cls = case.cls
        make: Callable[..., Any] = partial(cls, **case.options)
        for target, kind in _CONFIGS.items():
            for method in _METHODS:
                if target not in cls.quantization_targets or method not in cls.quantization_method:
                    what = f"a configuration of {target.value}, {method.value}"
                    count += _refused(case, what, ConfigError, partial(make, kind(method, case.bits)))
        for nonsense in (None, 8, {"num_bits": 8}):
            count += _refused(case, f"quantization_config={nonsense!r}", ConfigError, partial(make, nonsense))
        parameters = inspect.signature(cls).parameters
        takes = "estimator" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if takes and "estimator" not in case.options:
            wrong = partial(make, case.quantizer().quantization_config, estimator="no such")
            count += _refused(case, "an unknown estimator", ConfigError, wrong)
        if case.target is QuantizationTarget.ACTIVATION:
            bare = make(TrainableQuantizerActivationConfig(case.method, case.bits))
            count += _refused(case, "no first range", NotCalibratedError, partial(bare.declare, (1,), None))
        count += _refused(case, "no variables", NotCalibratedError, case.quantizer().convert2inferable)
        count += _refused_variables(case)
    return count


def _refused_variables(case: Case) -> int:
    quantizer, first = case.start()
    count = 0
    for name in case.trainable():
        quantizer.bind(first | {name: np.full_like(first[name], np.nan)})
        count += _refused(case, f"NaN in {name!r}", InputError, quantizer.convert2inferable)
    if quantizer.needs_noise:
        silent = lambda: quantizer.apply(case.values(), first, training=True)
        count += _refused(case, "training without a source of noise", InputError, silent)
    return count
