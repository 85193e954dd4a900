"""What every test shares: a quiet and small TensorFlow, a reproducible hypothesis, and a few fixtures."""

from __future__ import annotations

import gc
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports a framework: no start-up chatter, and one thread each, as workers share the cores.
for _name, _value in {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "agg",
}.items():
    os.environ.setdefault(_name, _value)

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

if TYPE_CHECKING:
    from tests.servers import Servers


class _TorchFirst(importlib.abc.MetaPathFinder):
    """Imports torch just before TensorFlow is: loaded in the other order, one process with both may crash."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "tensorflow":
            sys.meta_path.remove(self)
            if importlib.util.find_spec("torch"):
                importlib.import_module("torch")


if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, _TorchFirst())

CHECKOUT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ci")


# Scripts that tests run in processes of their own, and what people run by hand.
collect_ignore_glob = ["*on_backend.py", "assets/*", "benchmarks/*"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Sets aside what is there before the first test, as it stays to the end.

    Frameworks and collected tests are a million objects: to walk them takes a second, at every full collection of garbage.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_runtest_setup() -> None:
    """Makes what Keras draws at random the same in every run and order of tests, fixtures of all scopes included."""
    if keras := sys.modules.get("keras"):
        keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the checkout that the tests lie in."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside the checkout (or `QI_SHARED`); skips where there is none."""
    folder = Path(os.environ.get("QI_SHARED", CHECKOUT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no reference data: neither QI_SHARED nor a folder 'shared' beside the checkout")
    return folder


@pytest.fixture(scope="session")
def readonly() -> Callable[[Any], np.ndarray]:
    """A function that makes a read-only numpy copy: code that writes into its argument then fails."""

    def make(values: Any, dtype: Any = None) -> np.ndarray:
        array = np.array(values, dtype=dtype)
        array.setflags(write=False)
        return array

    return make


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Redis and PostgreSQL, each started when a test first wants it."""
    from tests.servers import Servers

    started = Servers()
    yield started
    started.close()


@pytest.fixture
def new_store_url(servers: Servers, tmp_path: Path) -> Callable[[str], str]:
    """A function from a kind of store ("memory", "sqlite", "redis", "postgresql") to the URL of a new one."""
    return lambda kind: servers.new_store_url(kind, tmp_path)
