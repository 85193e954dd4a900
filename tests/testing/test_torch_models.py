"""The clauses on torch modules catch what a file would lose, and what training or tracing breaks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from qi.errors import ContractError
from qi.quantizers import LSQQuantizer, STEQuantizer
from qi.testing import CLAUSES, check_quantizer
from qi.testing.registry import ON_TORCH
from tests.testing.broken import variant


def assert_caught(clause, message, base=LSQQuantizer, **members):
    check_quantizer(base, bits=(4,), clauses=[clause], on="torch")
    with pytest.raises(ContractError, match=rf"(?s)clause '{clause}', .*{message}"):
        check_quantizer(variant(base, **members), bits=(4,), clauses=[clause], on="torch")


def test_every_clause_on_models_has_its_twin():
    assert set(ON_TORCH.names()) == {"training", "saving", "modes", "mixed"} < set(CLAUSES.names())


def test_a_tensor_that_learns_nothing():
    def apply(self, x, variables, **options):
        return STEQuantizer.apply(self, x.detach() * 0, variables, **options) + 0 * x

    assert_caught("training", "expected the loss to fall; received", STEQuantizer, apply=apply)


def test_a_converted_quantizer_that_differs():
    def to_inferable(self, variables):
        return LSQQuantizer.to_inferable(self, {"step": variables["step"] * np.float32(1.001)} | rest(variables))

    rest = lambda variables: {name: value for name, value in variables.items() if name != "step"}
    assert_caught("saving", "result of the converted quantizer, bit for bit", to_inferable=to_inferable)


def test_another_result_once_traced():
    import torch

    def apply(self, x, variables, **options):
        gain = 0.5 if torch.compiler.is_compiling() else 1.0
        return STEQuantizer.apply(self, x * gain, variables, **options) * (1 / gain) ** 3

    assert_caught("modes", "as made eagerly", STEQuantizer, apply=apply)


def test_arithmetic_in_half_precision():
    def apply(self, x, variables, **options):
        return STEQuantizer.apply(self, x * 1.1, variables, **options)

    assert_caught("mixed", "the float32 result in torch.bfloat16, bit for bit", STEQuantizer, apply=apply)


def test_half_precision_that_becomes_float32():
    def apply(self, x, variables, **options):
        return STEQuantizer.apply(self, x.float(), variables, **options)

    assert_caught("mixed", "expected a result in torch.bfloat16; received torch.float32", STEQuantizer, apply=apply)


def test_the_contract_on_torch_needs_no_keras(checkout):
    program = (
        "import sys, qi\n"
        "print(qi.testing.check_quantizer(qi.PACTQuantizer, bits=(4,), clauses=['engines', 'gradients', 'saving'], on='torch'))\n"
        "print({'keras', 'tensorflow'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["PACTQuantizer: 6 checks of 3 clauses on 1 configurations passed", "set()"]
