"""The clause on gradients catches wrong ones, and takes a quantizer's own formula."""

from __future__ import annotations

import pytest

from qi.core.gradients import scale_gradient, surrogate
from qi.core.namespace import namespace_of
from qi.quantizers import DoReFaWeightsQuantizer, LSQPlusQuantizer, LSQQuantizer, PACTQuantizer, TQTQuantizer
from qi.testing import check_quantizer
from tests.testing.broken import assert_caught, variant


def doubled(self, x, variables, **more):
    return LSQQuantizer.apply(self, scale_gradient(x, 2.0, xp=namespace_of(x)), variables, **more)


def test_a_wrong_gradient_of_the_tensor():
    assert_caught("gradients", r"expected the gradient of the tensor to be .*; received .* at \(", apply=doubled)


def test_the_same_gradient_with_a_formula_that_says_so():
    def formula(self, x, variables, noise):
        prepared = self.prepared(x, variables)
        zero, xp = prepared.get("zero_point", 0 * x), namespace_of(x)
        clipped = xp.clip(x / prepared["step"], self.grid.qmin - zero, self.grid.qmax - zero)
        inside = xp.stop_gradient(clipped == x / prepared["step"])
        return prepared["step"] * xp.round(clipped) + inside * (x - xp.stop_gradient(x))  # x counts twice

    check_quantizer(variant(apply=doubled, formula=formula), bits=(4,), clauses=["gradients"])


@pytest.mark.parametrize("base", [LSQQuantizer, LSQPlusQuantizer])
def test_a_wrong_gradient_of_a_variable(base):
    def apply(self, x, variables, **more):
        halved = {k: scale_gradient(v, 0.5, xp=namespace_of(v)) for k, v in variables.items()}
        return base.apply(self, x, halved, **more)

    assert_caught("gradients", "the gradient of 'step' to be", base, apply=apply)


def test_a_variable_that_learns_nothing():
    def scale_zero_point(self, variables):
        scale, zero_point = TQTQuantizer.scale_zero_point(self, variables)
        return namespace_of(scale).stop_gradient(scale), zero_point

    message = "'log2_threshold', which trains, to have a gradient; received zeros"
    assert_caught("gradients", message, TQTQuantizer, scale_zero_point=scale_zero_point)


def test_rounding_errors_that_pull_where_they_should_not():
    def apply(self, x, variables, **more):
        self.residual = True
        try:
            return PACTQuantizer.apply(self, x, variables, **more)
        finally:
            del self.residual

    assert_caught("gradients", "the gradient of 'alpha'", PACTQuantizer, apply=apply)


def test_a_transform_without_its_gradient():
    def apply(self, x, variables, **more):
        self.transform = lambda x, v: surrogate(DoReFaWeightsQuantizer.transform(self, x, v), x, xp=namespace_of(x))
        try:
            return DoReFaWeightsQuantizer.apply(self, x, variables, **more)
        finally:
            del self.transform

    assert_caught("gradients", "the gradient of the tensor", DoReFaWeightsQuantizer, apply=apply)
