"""Bit allocation: one candidate for each item, with the least sum of losses that fits linear budgets.

Solved exactly, as a mixed-integer linear program: the solver also proves a lower bound, which no other allocation beats.

Source: Chen et al., Towards Mixed-Precision Quantization of Neural Networks via Constrained Optimization, 2021
(arXiv:2110.06554); the solver is HiGHS (Huangfu and Hall, Parallelizing the dual revised simplex method, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qi.errors import ConfigError, InputError
from qi.optional import require

__all__ = ["Allocation", "FrontPoint", "allocate", "front"]

_INFEASIBLE = 2
_MOST_CUTS = 100  # solutions that only the solver's tolerance lets through; seen so far: none
_SLACK = 1e-9  # relative: sums of costs are computed in another order than the user's


@dataclass(frozen=True)
class Allocation:
    """Which candidate each item takes.

    Attributes:
        choice: the candidate's place, item by item.
        loss: the sum of their losses.
        costs: the sum of their costs by the name of the budget.
        bound: no allocation within the budgets has a smaller loss.
        gap: (loss - bound) / abs(loss), from 0 on: 0 where the choice is proven to be the best.
    """

    choice: tuple[int, ...]
    loss: float
    costs: dict[str, float]
    bound: float
    gap: float


class FrontPoint(NamedTuple):
    """The best allocation within one budget."""

    budget: float
    allocation: Allocation


class _Program(NamedTuple):
    """The candidates of all items in one row: what each costs, to which item it belongs."""

    losses: np.ndarray  # [V] float64
    costs: dict[str, np.ndarray]  # each [V] float64
    owner: np.ndarray  # [V] int: the item
    starts: np.ndarray  # [items] int: where each item's candidates begin

    def allocation(self, chosen: np.ndarray, bound: float) -> Allocation:
        """What a choice, given as places in the row, comes to."""
        loss = math.fsum(self.losses[chosen])
        bound = min(bound, loss)
        gap = (loss - bound) / abs(loss) if loss else 0.0
        totals = {name: math.fsum(values[chosen]) for name, values in self.costs.items()}
        return Allocation(tuple(int(place) for place in chosen - self.starts), loss, totals, bound, gap)

    def least(self, values: np.ndarray) -> float:
        """The least sum that any allocation has."""
        return math.fsum(np.minimum.reduceat(values, self.starts))


def allocate(
    losses: Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    budgets: Mapping[str, float],
    *,
    time_limit: float = 60.0,
) -> Allocation:
    """Chooses one candidate for each item: the least sum of losses of which every sum of costs is within its budget.

    Args:
        losses: an array of finite numbers for each item, one a candidate; items may have different numbers of them.
        costs: by the name of a budget, arrays of the same shapes, from 0 on.
        budgets: by name, the most that the costs may sum up to; names without a budget are only summed up.
        time_limit: seconds; the best choice found by then is taken, and its `gap` says how good it is at least.

    Raises:
        ConfigError: a budget of no known name, or one that can't be met: the nearest that can is named; no choice was found
            within the time.
        InputError: losses or costs that aren't finite, or of other shapes.
        MissingDependencyError: scipy isn't installed.

    Example:
        >>> best = allocate([[9.0, 1.0], [4.0, 2.0]], {"bytes": [[10, 20], [10, 20]]}, {"bytes": 30})
        >>> best.choice, best.loss, best.costs, best.gap
        ((1, 0), 5.0, {'bytes': 30.0}, 0.0)
    """
    program = _program(losses, costs)
    limits = _checked_budgets(budgets, program)
    return _solve(program, limits, time_limit)


def front(
    losses: Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    name: str,
    budgets: Mapping[str, float] | None = None,
    *,
    points: int | Sequence[float] = 16,
    time_limit: float = 60.0,
) -> list[FrontPoint]:
    """The Pareto front: the best allocation for each of several values of one budget, each with its proven bound.

    Args:
        losses: as of `allocate`.
        costs: as of `allocate`.
        name: of the budget that varies.
        budgets: the others, which hold throughout.
        points: how many values of the budget, evenly from the least that can be met to what the least loss takes; or the
            values themselves, of which those that can't be met are left out.
        time_limit: seconds for each.

    Returns:
        points of rising cost and falling loss; values with the same allocation give one point.

    Raises:
        ConfigError: as of `allocate`; an unknown name, less than 2 points.

    Example:
        >>> found = front([[9.0, 1.0], [4.0, 2.0]], {"bytes": [[10, 20], [10, 20]]}, "bytes", points=3)
        >>> [(point.allocation.costs["bytes"], point.allocation.loss) for point in found]
        [(20.0, 13.0), (30.0, 5.0), (40.0, 3.0)]
    """
    program = _program(losses, costs)
    others = _checked_budgets({key: value for key, value in (budgets or {}).items() if key != name}, program)
    if name not in program.costs:
        raise ConfigError(f"expected the name of a budget among {', '.join(program.costs)}; received {name!r}")
    best = _solve(program, others, time_limit)
    low = _solve(program._replace(losses=program.costs[name]), others, time_limit).loss
    top = max(low, best.costs[name])
    found: dict[tuple[int, ...], FrontPoint] = {}
    least = math.inf
    for value in _values(points, low, top):
        allocation = _solve(program, others | {name: value}, time_limit)
        if allocation.loss < least and allocation.choice not in found:  # else a cheaper one does as well
            least = allocation.loss
            found[allocation.choice] = FrontPoint(value, allocation)
    return sorted(found.values(), key=lambda point: (point.allocation.costs[name], point.allocation.loss))


def _values(points: int | Sequence[float], low: float, top: float) -> list[float]:
    if isinstance(points, int):
        if points < 2:  # both ends
            raise ConfigError(f"expected at least 2 points of a front; received points={points!r}")
        return [float(value) for value in np.linspace(low, top, points)]
    return sorted(float(value) for value in points if value >= low)


def _program(losses: Sequence[Any], costs: Mapping[str, Sequence[Any]]) -> _Program:
    arrays = [_vector(f"losses[{item}]", values) for item, values in enumerate(losses)]
    if not arrays:
        raise InputError("expected at least one item to allocate bits to; received none")
    sizes = [len(array) for array in arrays]
    found = {}
    for name, given in costs.items():
        own = [_vector(f"costs[{name!r}][{item}]", values) for item, values in enumerate(given)]
        if [len(array) for array in own] != sizes:
            received = [len(array) for array in own]
            raise InputError(f"expected a cost {name!r} for each candidate, {sizes}; received {received} of them")
        found[name] = np.concatenate(own)
        if found[name].min() < 0:
            raise InputError(f"expected costs from 0 on; received {found[name].min():g} among {name!r}")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    return _Program(np.concatenate(arrays), found, np.repeat(np.arange(len(sizes)), sizes), starts)


def _vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InputError(f"expected {name} to hold a finite number for each candidate; received {array.tolist()}")
    return array


def _checked_budgets(budgets: Mapping[str, float], program: _Program) -> dict[str, float]:
    limits = {}
    for name, value in budgets.items():
        if name not in program.costs:
            raise ConfigError(f"expected budgets among {', '.join(program.costs)}; received {name!r}")
        limits[name] = float(value)
        if not math.isfinite(limits[name]):
            raise ConfigError(f"expected a finite budget; received {name}={value!r}")
    missed = {n: program.least(program.costs[n]) for n in limits if program.least(program.costs[n]) > _most(limits[n])}
    if missed:
        received = ", ".join(f"{name}={limits[name]:.12g}" for name in missed)
        nearest = ", ".join(f"{name}={round_up(value)}" for name, value in missed.items())
        raise ConfigError(f"expected budgets that can be met; received {received}; do allow at least {nearest}")
    return limits


def _most(budget: float) -> float:
    return budget + _SLACK * abs(budget)


def round_up(value: float) -> str:
    """A cost as text that is a budget for it: never below the value."""
    if value == round(value):
        return str(round(value))
    digits = max(0, 5 - math.floor(math.log10(abs(value))))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _solve(program: _Program, limits: Mapping[str, float], time_limit: float) -> Allocation:
    """The best choice; one that only the solver's tolerances let through is cut off, and the next best taken."""
    base = program.losses - np.minimum.reduceat(program.losses, program.starts)[program.owner]
    offset = program.least(program.losses)
    cheapest = _relaxed(program, base, limits)
    # The solver stops at a difference of 1e-6: beside 1e4 that is nothing.
    scale = cheapest / 1e4 if cheapest > 0 else (base.max() or 1.0)
    cuts: list[np.ndarray] = []
    while len(cuts) < _MOST_CUTS:
        result = _run(program, base / scale, limits, cuts, time_limit)
        if result.status == _INFEASIBLE:
            raise _impossible(program, limits, time_limit)
        if result.x is None:
            raise ConfigError(
                f"expected time enough to find an allocation; received time_limit={time_limit:g}; do raise it"
            )
        chosen = _chosen(program, result.x)
        found = program.allocation(chosen, offset + float(result.mip_dual_bound) * scale)
        if all(found.costs[name] <= _most(limit) for name, limit in limits.items()):
            return found if found.gap > _SLACK else program.allocation(chosen, found.loss)
        cuts.append(chosen)
    raise _impossible(program, limits, time_limit)


def _chosen(program: _Program, x: np.ndarray) -> np.ndarray:
    """Of each item the candidate with the largest share, as places in the row."""
    ends = np.append(program.starts[1:], len(x))
    pairs = zip(program.starts, ends, strict=True)
    return np.array([start + int(np.argmax(x[start:end])) for start, end in pairs])


def _relaxed(program: _Program, base: np.ndarray, limits: Mapping[str, float]) -> float:
    """The least loss when candidates may be mixed; 0 where that isn't known."""
    optimize = require("scipy.optimize", extra="search", feature="the search for bit widths")
    top = float(base.max()) or 1.0
    result = optimize.milp(base / top, bounds=optimize.Bounds(0, 1), constraints=_constraints(program, limits, []))
    return float(result.fun) * top if result.x is not None and result.fun > 1e-12 else 0.0  # rounding


def _run(
    program: _Program, objective: np.ndarray, limits: Mapping[str, float], cuts: list[np.ndarray], time_limit: float
) -> Any:
    optimize = require("scipy.optimize", extra="search", feature="the search for bit widths")
    return optimize.milp(
        objective,
        integrality=np.ones(len(objective)),
        bounds=optimize.Bounds(0, 1),
        constraints=_constraints(program, limits, cuts),
        options={"mip_rel_gap": 0.0, "time_limit": time_limit},
    )


def _constraints(program: _Program, limits: Mapping[str, float], cuts: list[np.ndarray]) -> list[Any]:
    """One candidate an item, the budgets, and choices that are known not to fit."""
    optimize = require("scipy.optimize", extra="search", feature="the search for bit widths")
    sparse = require("scipy.sparse", extra="search", feature="the search for bit widths")
    count, items = len(program.losses), len(program.starts)
    one = sparse.csr_array((np.ones(count), (program.owner, np.arange(count))), shape=(items, count))
    found = [optimize.LinearConstraint(one, 1, 1)]
    for name, limit in limits.items():
        largest = float(program.costs[name].max()) or 1.0
        found.append(optimize.LinearConstraint(program.costs[name][None] / largest, -np.inf, _most(limit) / largest))
    for chosen in cuts:
        row = np.zeros((1, count))
        row[0, chosen] = 1
        found.append(optimize.LinearConstraint(row, -np.inf, items - 1))
    return found


def _impossible(program: _Program, limits: Mapping[str, float], time_limit: float) -> ConfigError:
    """Each budget can be met, but not all at once: the choice that exceeds them least, in shares of each budget."""
    optimize = require("scipy.optimize", extra="search", feature="the search for bit widths")
    count, items = len(program.losses), len(program.starts)
    one = np.zeros((items, count + 1))
    one[program.owner, np.arange(count)] = 1
    rows = [optimize.LinearConstraint(one, 1, 1)]
    for name, limit in limits.items():
        size = abs(limit) or float(program.costs[name].max()) or 1.0
        row = np.append(program.costs[name] / size, -1.0)[None]
        rows.append(optimize.LinearConstraint(row, -np.inf, limit / size))
    result = optimize.milp(
        np.append(np.zeros(count), 1.0),
        integrality=np.append(np.ones(count), 0),
        bounds=optimize.Bounds(np.zeros(count + 1), np.append(np.ones(count), np.inf)),
        constraints=rows,
        options={"time_limit": time_limit},
    )
    received = ", ".join(f"{name}={limit:.12g}" for name, limit in limits.items())
    if result.x is None:
        return ConfigError(f"expected budgets that can be met together; received {received}; do raise one")
    near = program.allocation(_chosen(program, result.x[:-1]), -math.inf).costs
    nearest = ", ".join(f"{name}={round_up(max(near[name], limits[name]))}" for name in limits)
    return ConfigError(
        f"expected budgets that can be met together; received {received}, of which each can be met alone; do allow {nearest}, "
        "the nearest that can be"
    )
