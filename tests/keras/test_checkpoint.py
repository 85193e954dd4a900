"""Training that was stopped goes on where it was, and ends as if it never had been stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import ConfigError, FileFormatError
from qi.keras import checkpoint
from qi.keras.checkpoint import Checkpoint
from qi.keras.reconstruct import Reconstructed, _Learner, reconstruct
from tests.keras.models import settle
from tests.keras.prepared import start
from tests.keras.test_reconstruct import same

X = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
WAYS = {
    "network": {"scope": "network"},
    "blocks": {"scope": "layer"},
    "rounding": {"scope": "layer", "rounding": "adaround"},
}


def small() -> keras.Model:
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="relu", name="first")(inputs)
    hidden = layers.Dense(8, activation="relu", name="second")(hidden)
    return settle(keras.Model(inputs, layers.Dense(3, name="scores")(hidden), name="small"))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return small()


@pytest.fixture(scope="module")
def written(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a training of the whole network."""
    path = tmp_path_factory.mktemp("whole") / "kept.training"
    train(model, path)
    return path.read_bytes()


@pytest.fixture
def path(written: bytes, tmp_path: Path) -> Path:
    """That file."""
    found = tmp_path / "kept.training"
    found.write_bytes(written)
    return found


def train(model: keras.Model, path: Path | None = None, x: np.ndarray = X, **options: Any) -> Reconstructed:
    wanted = {"steps": 6, "learning_rate": 1e-2, "batch_size": 16, "progress": False} | options
    return reconstruct(*start(model, "w3a8", x), x, resume=path, **wanted)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Ctrl-C at a step, counted over all blocks; gives the list of the steps that ran."""
    done: list[int] = []
    known = _Learner.train_on_batch

    def train_on_batch(self: Any, *given: Any, **named: Any) -> Any:
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(1)
        return known(self, *given, **named)

    monkeypatch.setattr(_Learner, "train_on_batch", train_on_batch)
    return done


@pytest.mark.parametrize(
    ("way", "stop"), [("network", 0), ("network", 4), ("blocks", 6), ("blocks", 8), ("rounding", 8)]
)
def test_it_goes_on_and_ends_the_same(
    model: keras.Model, way: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, path = WAYS[way], tmp_path / "kept.training"
    whole = train(model, **options)
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 0.0)
    steps = 6 * (3 if way != "network" else 1)
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train(model, path, **options)
    ran = stop_at(monkeypatch, 1000)
    same(train(model, path, **options), whole)
    assert len(ran) == steps - stop
    same(train(model, path, **options), whole)  # nothing is left to do
    assert len(ran) == steps - stop


def test_ctrl_c_while_the_state_is_taken_leaves_the_one_before(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.training"
    whole = train(model)
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 0.0)
    taken, calls = checkpoint._taken, []

    def stopped(name: str, variables: Any) -> dict[str, np.ndarray]:
        calls.append(name)
        if len(calls) == 6:  # the optimizer's of the third step
            raise KeyboardInterrupt
        return taken(name, variables)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_taken", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(model, path)
    ran = stop_at(monkeypatch, 1000)
    same(train(model, path), whole)
    assert len(ran) == 4


def test_without_time_to_write_only_blocks_are_kept(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.training"
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            train(model, path, scope="layer")
    ran = stop_at(monkeypatch, 1000)
    train(model, path, scope="layer")
    assert len(ran) == 12


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 7},
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"x": X + 1},
        {"scope": "layer"},
        {"rounding": "adaround"},
        {"batch_size": 8},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_work_is_refused(model: keras.Model, other: dict[str, Any], path: Path, written: bytes) -> None:
    with pytest.raises(ConfigError, match="of others"):
        train(model, path, **other)
    assert path.read_bytes() == written


def test_another_model_is_refused(path: Path) -> None:
    model = small()
    kernel = model.get_layer("second").kernel
    kernel.assign(kernel + 0.001)
    with pytest.raises(ConfigError, match="of others"):
        train(model, path)


def test_damaged_files_are_refused(model: keras.Model, path: Path, written: bytes) -> None:
    arrays = dict(np.load(path))
    for damaged in (b"", b"text", written[: len(written) // 2], written[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="do delete it"):
            train(model, path)
        assert path.read_bytes() == damaged
    for change in ({"block0.0": np.zeros((1, 1), "float32")}, {"block0.0": np.full_like(arrays["block0.0"], np.nan)}):
        np.savez(path.with_suffix(".npz"), **arrays | change)
        with pytest.raises(FileFormatError, match="state of this training"):
            train(model, path.with_suffix(".npz"))
    np.savez_compressed(path.with_suffix(".npz"), **arrays | {"much": np.zeros(10**6)})
    with pytest.raises(FileFormatError, match="compressed"):
        train(model, path.with_suffix(".npz"))


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Checkpoint(tmp_path / "none" / "kept", "")
    with pytest.raises(IsADirectoryError):
        Checkpoint(tmp_path, "")


def test_no_path_keeps_nothing(model: keras.Model) -> None:
    kept = Checkpoint(None)
    kept.finish(0, (1.0, 0.5), model.trainable_variables, True)
    assert kept.finished(0, model.trainable_variables) is None
    kept.write()
