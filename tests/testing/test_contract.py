"""The contract over the whole registry: a new quantizer is tested on arrival."""

from __future__ import annotations

import pytest

import qi
from qi.quantizers import BaseTrainableQuantizer, quantizer_classes
from qi.testing import CLAUSES, cases_of, check_quantizer

# Only the package's own: tests of registration leave theirs behind.
CLASSES = {
    cls.__name__: cls
    for name, cls in quantizer_classes().items()
    if name.startswith("qi>") and issubclass(cls, BaseTrainableQuantizer)
}
# What compiles takes its time, and bits change nothing that compilers could see.
BITS = dict.fromkeys(("engines", "finite", "positive"), (4,)) | {"config": (1, 4), "refusals": (4,)}
# The clauses that a backend has a part in. (On which `training` says no more than `modes`, and `positive` than `finite`.)
OF_BACKENDS = {"engines", "finite", "gradients", "mixed", "modes", "saving"}
# Classes that differ from their parent in arithmetic alone are saved, and cast, as it is.
AS_THEIR_PARENT = {"AdditiveNoiseQuantizer", "LSQPlusQuantizer"}


def pairs():
    for name in CLASSES:
        for clause in CLAUSES.names():
            again = clause in OF_BACKENDS and not (clause in ("saving", "mixed") and name in AS_THEIR_PARENT)
            marks = pytest.mark.backend if again else ()
            yield pytest.param(name, clause, id=f"{name}-{clause}", marks=marks)


@pytest.mark.parametrize(("name", "clause"), list(pairs()))
def test_every_quantizer_keeps_every_clause(name, clause):
    bits = BITS.get(clause, (2, 4, 8))
    summary = check_quantizer(CLASSES[name], bits=bits, clauses=[clause])
    assert set(summary.checks) == {clause}
    assert summary.cases >= len(bits)
    learns = CLASSES[name].learned_range
    assert summary.checks[clause] > 0 or (clause == "positive" and not learns)  # a fixed range has no variables


@pytest.mark.parametrize("bits", [1, 16])
@pytest.mark.parametrize("name", CLASSES)
def test_the_fewest_and_the_most_bits(name, bits):
    check_quantizer(CLASSES[name], bits=(bits,), clauses=["forward", "gradients"])


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "ste"},
        {"estimator": "ewgs", "estimator_options": {"delta": 0.3}},
        {"estimator": "dsq", "estimator_options": {"alpha": 0.2}},
    ],
    ids=lambda options: options["estimator"],
)
def test_constructor_options_are_passed_on(options):
    summary = check_quantizer(qi.LSQQuantizer, bits=(3,), clauses=["config", "gradients", "finite"], **options)
    assert summary.cases == len(cases_of(qi.LSQQuantizer, (3,)))


def test_all_clauses_by_default_and_a_summary_that_reads_well(monkeypatch):
    monkeypatch.setattr(CLAUSES, "_entries", {"one": lambda cases: len(cases), "two": lambda cases: 3})
    summary = qi.testing.check_quantizer(qi.PACTQuantizer, bits=(2, 8))
    assert summary.checks == {"one": 2, "two": 3}
    assert str(summary) == "PACTQuantizer: 5 checks of 2 clauses on 2 configurations passed"


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (qi.WeightsPOTInferableQuantizer, "expected a subclass of BaseTrainableQuantizer; received"),
        ("LSQQuantizer", "expected a subclass of BaseTrainableQuantizer; received 'LSQ"),
        (
            type("Mine", (qi.LSQQuantizer,), {}),
            "expected a registered class; received Mine; do decorate it with @mark_",
        ),
    ],
    ids=["inferable", "name", "unregistered"],
)
def test_what_is_no_registered_trainable_quantizer_is_refused(cls, message):
    with pytest.raises(qi.ConfigError, match=message):
        check_quantizer(cls)


def test_an_unknown_clause_is_refused():
    with pytest.raises(
        qi.ConfigError, match=r"name of a clause of the contract; received 'gradient'\. Did you mean 'gradi"
    ):
        check_quantizer(qi.LSQQuantizer, clauses=["gradient"])
