"""Tests for qi.keras.rounding: weights of a model on their grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi.algorithms.run as running
from qi.algorithms import Solution
from qi.algorithms.journal import Journal
from qi.core import LutGrid
from qi.errors import ConfigError, FileFormatError, InputError
from qi.keras import rounding
from qi.keras.prepare import Prepared, prepare
from qi.keras.rounding import Rounded, WeightSite, problem_of, quantizer_of, round_weights, view_of, weight_sites
from qi.observers import Moments
from qi.recipes import Recipe, TensorSpec
from qi.recipes.choose import weight_quantizer
from tests.keras.linked import calibrated, images, uneven

KEYS = ["conv/kernel", "depth/kernel", "grouped/kernel", "dense/kernel"]


def network() -> keras.Model:
    """A layer of each way to multiply; 10 inputs of the last one: no whole number of groups of 4."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, activation="relu", name="depth")(x)
    x = layers.Conv2D(10, 1, groups=2, activation="relu", name="grouped")(x)
    return uneven(keras.Model(inputs, layers.Dense(5, name="dense")(layers.GlobalAveragePooling2D()(x)), name="net"))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def moments(model: keras.Model) -> dict[str, Moments]:
    return calibrated(prepare(model, "w4"), images(shape=(6, 6, 3))).inputs


def spec(method: str = "symmetric", granularity: str = "per_channel", *names: Any, bits: int = 4) -> TensorSpec:
    group = 4 if granularity == "per_group" else None
    return TensorSpec(bits=bits, method=method, granularity=granularity, group_size=group, algorithms=names)


def sites_of(model: keras.Model, of: TensorSpec) -> list[WeightSite]:
    return weight_sites(prepare(model, Recipe("mine", weights=of)))


def rounded(model: keras.Model, of: TensorSpec, moments: Any, **options: Any) -> dict[str, Rounded]:
    given: dict[str, Any] = {"jobs": 1, "resume": None, "origin": "net", "progress": False}
    return round_weights(sites_of(model, of), moments, **given | options)


def on_grid(found: dict[str, Rounded]) -> None:
    """Values are their own nearest ones, by codes that are the solution's."""
    for key, one in found.items():
        params = one.quantizer.qparams(one.values.shape)
        codes = params.quantize(one.values).codes
        np.testing.assert_array_equal(view_of(one.site).matrix(codes), one.solved.solution.codes, err_msg=key)
        np.testing.assert_array_equal(np.asarray(one.quantizer(one.values)), one.values, err_msg=key)
        again = type(one.quantizer).from_config(one.quantizer.get_config())
        np.testing.assert_array_equal(again.qparams(one.values.shape).quantize(one.values).codes, codes)
        assert np.isfinite(one.values).all()
        assert one.values.dtype == one.site.array.dtype


def test_sites(model: keras.Model) -> None:
    sites = sites_of(model, spec())
    assert [site.key for site in sites] == KEYS
    assert all(site.linear is not None and not site.tied for site in sites)
    assert [view_of(site).sizes for site in sites] == [(1, 27, 4), (4, 4, 2), (2, 4, 5), (1, 10, 5)]


@pytest.mark.parametrize("method", ["symmetric", "power_of_two", "uniform"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_problems_are_what_the_quantizer_does(
    model: keras.Model, moments: dict[str, Moments], method: str, granularity: str
) -> None:
    """Nearest codes on the problem's parameters are, bit for bit, what the recipe's quantizer makes of the weight."""
    for site in sites_of(model, spec(method, granularity)):
        problem = problem_of(site, moments[site.key])
        quantizer = weight_quantizer(site.array, site.spec, site.slot)
        values = view_of(site).tensor(problem.values(problem.nearest()))
        np.testing.assert_array_equal(values, np.asarray(quantizer(site.array)), err_msg=site.key)
        assert problem.second is not None
        assert problem.second.shape == (*problem.weight.shape[:2], problem.weight.shape[1])
        assert problem_of(site, None).second is None
        if granularity == "per_group" and site.key == "dense/kernel":
            assert len(problem.scale) == 3 * 5  # of 4, 4 and 2 inputs
        doubled = problem_of(site, None, 2 * site.array)
        np.testing.assert_allclose(doubled.scale, 2 * problem.scale, rtol=1e-5)


@pytest.mark.parametrize("method", ["symmetric", "power_of_two", "uniform"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_gptq_on_every_grid(model: keras.Model, moments: dict[str, Moments], method: str, granularity: str) -> None:
    found = rounded(model, spec(method, granularity, "gptq", bits=3), moments)
    assert list(found) == KEYS
    on_grid(found)
    assert all(one.solved.error <= one.solved.nearest for one in found.values())
    assert sum(one.solved.error for one in found.values()) < sum(one.solved.nearest for one in found.values())
    if method == "power_of_two":
        for one in found.values():
            mantissa, _ = np.frexp(one.quantizer.qparams(one.values.shape).scale)
            np.testing.assert_array_equal(mantissa, 0.5)


@pytest.mark.parametrize(
    "names", [("output_range", "gptq"), ("hqq",), ("kmeans",), ("kmeans", "gptq"), ("powers",), ("output_range",)]
)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_algorithms_that_choose_scales(
    model: keras.Model, moments: dict[str, Moments], granularity: str, names: tuple[str, ...]
) -> None:
    found = rounded(model, spec("symmetric", granularity, *names), moments)
    on_grid(found)
    table = bool({"kmeans", "powers"} & set(names))
    for one in found.values():
        assert isinstance(one.quantizer.qparams(one.values.shape).grid, LutGrid) == table


def test_asymmetric_ranges(model: keras.Model, moments: dict[str, Moments]) -> None:
    found = rounded(model, spec("uniform", "per_channel", "output_range", "gptq"), moments)
    on_grid(found)
    assert any(one.solved.solution.zero_point.any() for one in found.values())
    on_grid(rounded(model, spec("uniform", "per_group", "hqq"), moments))


def test_powers_of_two_by_shifts(model: keras.Model, moments: dict[str, Moments]) -> None:
    names = {"name": "powers", "power_of_two_scale": True}
    found = rounded(model, spec("power_of_two", "per_channel", names, "gptq"), moments)
    on_grid(found)
    for one in found.values():
        values = np.abs(one.values[one.values != 0])
        np.testing.assert_array_equal(np.frexp(values)[0], 0.5)


def test_correction_alone_rounds_to_nearest(model: keras.Model, moments: dict[str, Moments]) -> None:
    found = rounded(model, spec("symmetric", "per_channel", "bias_correction"), moments)
    for one in found.values():
        quantizer = weight_quantizer(one.site.array, one.site.spec, one.site.slot)
        np.testing.assert_array_equal(one.values, np.asarray(quantizer(one.site.array)))
    assert rounded(model, spec(), moments) == {}
    assert rounded(model, spec("symmetric", "per_channel", "equalize"), moments) == {}


@pytest.mark.parametrize("name", ["gptq", "output_range", "bias_correction", "norm_correction"])
def test_no_moments(model: keras.Model, name: str) -> None:
    with pytest.raises(InputError, match=f"'conv/kernel' for '{name}'.*do give data"):
        rounded(model, spec("symmetric", "per_channel", name), {})
    with pytest.raises(InputError, match=name):
        rounded(model, spec("symmetric", "per_channel", name), {key: Moments(1, 3) for key in KEYS})


def test_moments_that_nobody_asked_for_change_nothing(model: keras.Model, moments: dict[str, Moments]) -> None:
    """Stored statistics know them all; with data, only those that are needed are collected."""
    one, other = (rounded(model, spec("symmetric", "per_channel", "kmeans"), m) for m in (moments, {}))
    for key in KEYS:
        np.testing.assert_array_equal(one[key].values, other[key].values)
        assert np.isnan(one[key].solved.nearest)


def test_weights_without_a_view_have_channels_as_outputs() -> None:
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(9, 3, name="table")(inputs))
    net = uneven(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    sites = {site.key: site for site in sites_of(net, spec("symmetric", "per_channel", "kmeans"))}
    assert sites["table/embeddings"].linear is None
    given = {"jobs": 1, "resume": None, "origin": "x", "progress": False}
    found = round_weights(list(sites.values()), {}, **given)  # type: ignore[arg-type]
    on_grid(found)
    assert sorted(found) == ["head/kernel", "table/embeddings"]


def test_layers_called_twice_are_one_site() -> None:
    shared, inputs = layers.Dense(4, name="shared"), keras.Input((4,))
    net = uneven(keras.Model(inputs, shared(layers.ReLU()(shared(inputs)))))
    ready = prepare(net, Recipe("mine", weights=spec("symmetric", "per_channel", "gptq")))
    (site,) = weight_sites(ready)
    seen = calibrated(ready, images(40, (4,)))
    assert seen.inputs[site.key].count == 2 * 40


def test_tied_weights_are_told() -> None:
    inputs = keras.Input((4,))
    one, two = layers.Dense(4, use_bias=False, name="one"), layers.Dense(4, use_bias=False, name="two")
    net = uneven(keras.Model(inputs, two(layers.ReLU()(one(inputs)))))
    vars(two)["_kernel"] = one._kernel
    two._trainable_variables[0] = one._kernel
    assert [site.tied for site in sites_of(net, spec())] == ["'two'", "'one'"]


def test_nothing_that_no_quantizer_can_hold(model: keras.Model) -> None:
    """Codes that their own values don't give again are refused: a table with entries twice, say, from a plug-in."""
    site = sites_of(model, spec())[-1]
    problem = problem_of(site, None)
    codes = problem.nearest()
    beyond = Solution(codes + 100, problem.scale, problem.zero_point, problem.grid)
    with pytest.raises(ConfigError, match="dense/kernel"):
        quantizer_of(site, beyond)


# Stopped and taken up again ---------------------------------------------------------------------------------------------


def bits(found: dict[str, Rounded]) -> dict[str, bytes]:
    return {key: one.values.tobytes() for key, one in found.items()}


def test_stopped_and_taken_up(
    model: keras.Model, moments: dict[str, Moments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, of = tmp_path / "progress.npz", spec("symmetric", "per_channel", "output_range", "gptq")
    whole = rounded(model, of, moments)
    calls: list[int] = []
    solve = running.solve

    def stopping(task: running.Task) -> running.Solved:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(task)

    monkeypatch.setattr(running, "solve", stopping)
    with pytest.raises(KeyboardInterrupt):
        rounded(model, of, moments, resume=path)
    assert len(calls) == 3
    found = rounded(model, of, moments, resume=path)
    assert len(calls) == 5  # the two that were left
    assert list(found) == list(whole)
    assert bits(found) == bits(whole)
    for key, one in found.items():
        assert one.quantizer.get_config() == whole[key].quantizer.get_config()
        assert one.solved.error == whole[key].solved.error
    rounded(model, of, moments, resume=path)
    assert len(calls) == 5


def test_progress_of_other_work(model: keras.Model, moments: dict[str, Moments], tmp_path: Path) -> None:
    path, of = tmp_path / "progress.npz", spec("symmetric", "per_channel", "gptq")
    rounded(model, of, moments, resume=path)
    other = network()
    other.get_layer("dense").kernel.assign(np.asarray(other.get_layer("dense").kernel) * 1.01)
    twice = {key: one.merge(one).scaled(np.full(one.mean.shape, 1.1)) for key, one in moments.items()}
    changes: list[tuple[keras.Model, TensorSpec, Any, dict[str, Any]]] = [
        (other, of, moments, {}),
        (model, spec("symmetric", "per_channel", "gptq", bits=3), moments, {}),
        (model, spec("symmetric", "per_channel", {"name": "gptq", "damping": 0.02}), moments, {}),
        (model, of, twice, {}),
        (model, of, moments, {"origin": "another"}),
    ]
    for net, asked, seen, options in changes:
        with pytest.raises(ConfigError, match="this model, recipe and statistics"):
            rounded(net, asked, seen, resume=path, **options)
    path.write_bytes(b"PK" + path.read_bytes())
    with pytest.raises(FileFormatError, match="damaged"):
        rounded(model, of, moments, resume=path)


@pytest.mark.filterwarnings("ignore:the last record")
def test_progress_that_was_cut_off(model: keras.Model, moments: dict[str, Moments], tmp_path: Path) -> None:
    path, of = tmp_path / "progress", spec("symmetric", "per_channel", "gptq")
    whole = rounded(model, of, moments, resume=path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    found = rounded(model, of, moments, resume=path)
    assert bits(found) == bits(whole)
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", ["name", "shape"])
def test_progress_that_does_not_fit(
    model: keras.Model, moments: dict[str, Moments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Results of other names or shapes under the right fingerprint, as no QI writes them."""
    path, of = tmp_path / "progress", spec("symmetric", "per_channel", "gptq")
    monkeypatch.setattr(rounding, "_fingerprint", lambda *_: "abc")
    found = next(iter(rounded(model, of, moments).items()))
    solution = found[1].solved.solution
    cut = replace(solution, codes=solution.codes[:, 1:])
    journal = Journal(path, "abc")
    journal.add(
        *(("other", found[1].solved) if change == "name" else (found[0], replace(found[1].solved, solution=cut)))
    )
    with pytest.raises(FileFormatError, match="results of these weights"):
        rounded(model, of, moments, resume=path)


def test_at_once_gives_the_same_bits(model: keras.Model, moments: dict[str, Moments]) -> None:
    pytest.importorskip("joblib")
    of = spec("symmetric", "per_channel", "output_range", "gptq")
    assert bits(rounded(model, of, moments, jobs=2)) == bits(rounded(model, of, moments))


def test_copies_only(model: keras.Model) -> None:
    before = [np.array(weight) for weight in model.get_weights()]
    ready: Prepared = prepare(model, Recipe("mine", weights=spec()))
    assert all(site.op is not model.get_layer(site.layer) for site in weight_sites(ready))
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
