"""The clauses of the contract, by name, and how they complain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from qi.errors import ContractError
from qi.registry import Registry
from qi.testing.cases import Case
from qi.typing import Array

__all__ = ["CLAUSES", "ON_TORCH", "Clause", "expect", "expect_close", "expect_same", "fail"]

Clause = Callable[[Sequence[Case]], int]
CLAUSES: Registry[Clause] = Registry("clause of the contract")
"""Functions ``(cases) -> number of checks made``; all cases are of one class. They raise `ContractError`."""

ON_TORCH: Registry[Clause] = Registry("clause of the contract on torch")
"""What stands in for some of `CLAUSES` with ``on="torch"``: those on models, made of torch modules."""


def fail(clause: str, where: Any, problem: str) -> NoReturn:
    """Raises the one kind of error that clauses raise."""
    raise ContractError(f"clause {clause!r}, {where}: {problem}")


def expect(condition: Any, clause: str, where: Any, problem: str) -> None:
    """Fails unless the condition holds."""
    if not condition:
        fail(clause, where, problem)


def expect_same(found: Array, wanted: Array, clause: str, where: Any, what: str) -> None:
    """Fails unless two arrays agree bit for bit: dtype, shape and the sign of 0 included."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        fail(clause, where, f"expected {what}: {wanted.dtype}{wanted.shape}; received {found.dtype}{found.shape}")
    different = (found != wanted) & ~((found != found) & (wanted != wanted))
    if found.dtype.kind == "f":
        different |= np.signbit(found) != np.signbit(wanted)
    if np.any(different):
        first = np.unravel_index(int(np.argmax(different)), found.shape)
        index = tuple(int(i) for i in first)
        problem = f"expected {what}, bit for bit; received {found[first]!r} in place of {wanted[first]!r} at {index}"
        fail(clause, where, f"{problem} ({int(np.sum(different))} of {different.size} differ)")


def expect_close(found: Array, wanted: Array, clause: str, where: Any, what: str, *, slack: float) -> None:
    """Fails unless two arrays agree to a part in a thousand of the greatest value, plus `slack`."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    error = np.abs(found - wanted)
    limit = 1e-3 * float(np.max(np.abs(wanted), initial=0.0)) + slack
    if found.shape != wanted.shape or not np.all(error <= limit):
        worst = np.unravel_index(int(np.argmax(np.where(np.isnan(error), np.inf, error))), found.shape)
        index = tuple(int(i) for i in worst)
        fail(clause, where, f"expected {what} to be {wanted[worst]:.7g}; received {found[worst]:.7g} at {index}")
