"""Files: the same bits in another process, packed codes inside, and nothing half written or half read."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi import FileFormatError, InputError, Recipe, Rule, TensorSpec, load_model, quantize_model, save_model
from qi.keras.saving import size_on_disk
from tests.keras.fresh import run_fresh
from tests.keras.models import build, samples, settle
from tests.keras.warned import warned

ACTIVATIONS = TensorSpec(bits=8, method="uniform", range="mse")
RECIPES: dict[str, Any] = {
    name: name for name in ("w8a8", "w8", "w4a8", "w8a16", "w4_g32", "w8a8_pt", "w2", "w3_g4", "w16a16")
} | {
    "rules": Recipe(
        "rules",
        weights=TensorSpec(bits=8, granularity="per_channel"),
        activations=ACTIVATIONS,
        rules=(
            Rule("expand", weights=TensorSpec(bits=3, granularity="per_group", group_size=2), activations="float"),
            Rule(layer_type="DepthwiseConv2D", weights="float"),
            Rule("probabilities*", weights=TensorSpec(bits=5, method="uniform", granularity="per_channel")),
        ),
    ),
    "uniform": Recipe(
        "uniform", weights=TensorSpec(bits=8, method="uniform", granularity="per_channel"), activations=ACTIVATIONS
    ),
    "one bit": Recipe("one bit", weights=TensorSpec(bits=1, method="uniform", granularity="per_tensor")),
    "powers": Recipe(
        "powers",
        weights=TensorSpec(bits=4, method="power_of_two", granularity="per_channel"),
        activations=TensorSpec(bits=8, method="power_of_two"),
    ),
}
STRUCTURES = ("nested", "shared", "dict_io", "list_io", "nested_io", "operations", "tokens", "unfoldable")
CASES = {f"mobile {name}": ("mobile", recipe) for name, recipe in RECIPES.items()} | {
    f"{model} {recipe}": (model, recipe)
    for recipe, models in {"w8a8": STRUCTURES, "w4_g32": STRUCTURES[:5]}.items()
    for model in models
}

PREDICT = """
import sys
from pathlib import Path
import numpy as np
{imports}
for path in map(Path, sys.argv[1:]):
    model = {load}(path)
    import keras
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        given = [file[f"input {{i}}"] for i in range(len(model.inputs))]
    outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(model.input, given), training=False))
    np.savez(path.with_suffix(".{tag}.npz"), *map(keras.ops.convert_to_numpy, outputs))
"""
WAYS = {
    "keras": PREDICT.format(imports="import keras, qi.keras", load="keras.models.load_model", tag="keras"),
    "qi": PREDICT.format(imports="import qi", load="qi.load_model", tag="qi"),
}


class Saved:
    """A quantized model in a file with its inputs beside it, and what it predicted before it was saved."""

    def __init__(self, name: str, recipe: Any, path: Path) -> None:
        model = build(name)
        data = samples(model, 32)
        quantized, self.report = quantize_model(model, recipe, data, progress=False)
        flat = keras.tree.flatten(data)
        np.savez(path.with_suffix(".npz"), **{f"input {i}": array for i, array in enumerate(flat)})
        self.path = save_model(quantized, path)
        self.structure = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), quantized.output)
        self.outputs = [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(quantized(data, training=False))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    folder = tmp_path_factory.mktemp("saved")
    with warned():  # ranges of a few hundred values clip some of them
        return {
            case: Saved(name, recipe, folder / f"{index}.keras")
            for index, (case, (name, recipe)) in enumerate(CASES.items())
        }


@pytest.mark.parametrize("way", WAYS)
def test_a_fresh_process_predicts_the_same_bits(way: str, saved: dict[str, Saved]) -> None:
    run_fresh(WAYS[way], *(item.path for item in saved.values()))
    for case, item in saved.items():
        with np.load(item.path.with_suffix(f".{way}.npz"), allow_pickle=False) as file:
            found = [file[name] for name in file.files]
        assert [array.dtype for array in found] == [array.dtype for array in item.outputs], case
        for array, expected in zip(found, item.outputs, strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=case)


def test_report_gives_the_bytes_on_disk(saved: dict[str, Saved]) -> None:
    for case, item in saved.items():
        assert item.report.quantized_file_bytes == item.path.stat().st_size, case


def test_structure_of_outputs_is_kept(saved: dict[str, Saved]) -> None:
    for name in ("dict_io w8a8", "list_io w8a8", "nested_io w4_g32"):
        loaded = load_model(saved[name].path)
        assert keras.tree.map_structure(lambda tensor: tuple(tensor.shape), loaded.output) == saved[name].structure


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the weights file within a .keras archive."""
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_file_holds_packed_codes_and_no_float_kernel(saved: dict[str, Saved]) -> None:
    found = arrays_in(saved["mobile w4_g32"].path)
    codes = {name: array for name, array in found.items() if name.endswith(":codes")}
    kernels = (3 * 3 * 3 * 4, 4 * 8, 3 * 3 * 8, 8 * 4, 16 * 5)  # of 4 bits each
    assert sorted(array.size for array in codes.values()) == sorted(size // 2 for size in kernels)
    assert {array.dtype for array in codes.values()} == {np.dtype(np.uint8)}
    rest = [array for name, array in found.items() if name not in codes]
    assert max(array.size for array in rest) <= 8  # scales and biases


@pytest.fixture(scope="module")
def wide() -> keras.Model:
    stack = [keras.Input((1024,))] + [layers.Dense(1024) for _ in range(4)]
    return settle(keras.Sequential(stack))


@pytest.mark.parametrize(("recipe", "bound"), [("w8", 0.30), ("w4", 0.17)])
def test_four_wide_layers_are_small_on_disk(recipe: str, bound: float, wide: keras.Model, tmp_path: Path) -> None:
    quantized, report = quantize_model(wide, recipe, progress=False)
    before, after = (save_model(m, tmp_path / f"{i}.keras").stat().st_size for i, m in enumerate((wide, quantized)))
    assert (report.float_file_bytes, report.quantized_file_bytes) == (before, after)
    assert after <= bound * before


def test_file_is_compressed_and_reads_in_plain_keras(tmp_path: Path) -> None:
    model = build("residual")
    plain, packed = tmp_path / "plain.keras", tmp_path / "packed.keras"
    model.save(plain)
    assert save_model(model, packed).stat().st_size < 0.4 * plain.stat().st_size
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed) as new:
        assert new.testzip() is None
        assert new.namelist() == old.namelist()
    loaded = keras.models.load_model(packed)
    for found, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_size_on_disk_leaves_the_optimizer_out(tmp_path: Path) -> None:
    model = build("residual")
    plain = size_on_disk(model)
    assert plain == save_model(model, tmp_path / "plain.keras").stat().st_size
    model.compile("adam", "mse", jit_compile=False)
    model.fit(samples(model, 8), np.zeros((8, 5)), verbose=0)
    size = size_on_disk(model)
    assert size is not None
    assert abs(size - plain) < 0.02 * plain  # the configuration is written a little differently
    assert size < 0.8 * save_model(model, tmp_path / "compiled.keras").stat().st_size
    assert len(model.optimizer.variables) > 10


def test_size_on_disk_is_none_where_saving_fails() -> None:
    class Unsaved(layers.ReLU):
        def get_config(self) -> dict[str, Any]:
            raise NotImplementedError("no")

    inputs = keras.Input((3,))
    assert size_on_disk(keras.Model(inputs, Unsaved()(inputs))) is None


# Files of earlier versions ---------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "files"
GOLDEN_FILES = sorted(GOLDEN.glob("*.keras"))


def test_there_are_files_of_the_first_version() -> None:
    assert {"w8a8-0.1.0.keras", "w4_g32-0.1.0.keras"} <= {path.name for path in GOLDEN_FILES}


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_files_of_earlier_versions_give_the_same_bits(path: Path) -> None:
    model = load_model(path)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        stored = {kind: {} for kind in ("input", "output", "weight")}
        for key in file.files:
            kind, _, name = key.partition(".")
            stored[kind][name] = file[key]
    weights = {
        f"{layer.name}/{path}": array
        for layer in model.layers
        if isinstance(layer, qi.KerasQuantizationWrapper)
        for path, array in layer.get_quantized_weights().items()
    }
    outputs = model.predict(stored["input"], verbose=0)
    for found, expected in ((weights, stored["weight"]), (outputs, stored["output"])):
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


# Writing ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> keras.Model:
    return settle(keras.Sequential([keras.Input((4,)), layers.Dense(3)]))


def test_an_old_file_is_replaced_and_nothing_else_is_left(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")
    assert save_model(model, str(path)) == path
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(load_model(path).get_weights()[0], model.get_weights()[0])


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_permissions_are_those_of_any_new_file_or_of_the_old_one(model: keras.Model, tmp_path: Path) -> None:
    mode = lambda path: stat.S_IMODE(path.stat().st_mode)
    (tmp_path / "plain").touch()
    path = save_model(model, tmp_path / "model.keras")
    assert mode(path) == mode(tmp_path / "plain")
    path.chmod(0o600)
    assert mode(save_model(model, path)) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_is_followed(model: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "link.keras"
    link.symlink_to(tmp_path / "store" / "model.keras")
    assert save_model(model, link) == link
    assert link.is_symlink()
    assert load_model(tmp_path / "store" / "model.keras").name == model.name


def test_a_failure_while_saving_leaves_the_old_file(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")

    def fail(_: Any, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.saving, "save_model", fail)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


DISK_FULL = """
import resource, sys
from pathlib import Path
import keras, qi

path = Path(sys.argv[1])
model = qi.load_model(path)
old, hard = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (0, 100, len(old) // 2, len(old) - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        qi.save_model(model, path)
        outcome = "saved"
    except OSError as error:
        outcome = f"OSError {error.errno}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    left = [file.name for file in path.parent.iterdir()]
    print(limit, outcome, path.read_bytes() == old, left)
qi.save_model(model, path)
print("saved at last")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk_leaves_the_old_file(model: keras.Model, tmp_path: Path) -> None:
    path = save_model(quantize_model(model, "w4", progress=False)[0], tmp_path / "model.keras")
    *lines, last = run_fresh(DISK_FULL, path).splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["OSError 27 True ['model.keras']"] * 4
    assert last == "saved at last"


def test_bad_targets_are_refused(model: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a path ending in .keras; received '.*model.h5'"):
        save_model(model, tmp_path / "model.h5")
    with pytest.raises(InputError, match=r"expected an existing folder; received '.*missing'"):
        save_model(model, tmp_path / "missing" / "model.keras")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(InputError, match="which is a folder"):
        save_model(model, tmp_path / "folder.keras")
    with pytest.raises(InputError, match="expected a Keras model; received 3 of type int"):
        save_model(3, tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.keras"]


# Reading ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive() -> bytes:
    """A quantized model's file."""
    return (GOLDEN / "w4_g32-0.1.0.keras").read_bytes()


def rewritten(archive: bytes, **parts: bytes | None) -> bytes:
    """The archive with some parts replaced, or left out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            data = parts.get(name.partition(".")[0], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return result.getvalue()


DAMAGE = {
    "empty": lambda data: b"",
    "no archive": lambda data: b"a model, honestly",
    "first byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "all but the last byte": lambda data: data[:-1],
    "one bit in the weights": lambda data: data[:30000] + bytes([data[30000] ^ 1]) + data[30001:],
    "no config": lambda data: rewritten(data, config=None),
    "no weights": lambda data: rewritten(data, model=None),
    "config is no JSON": lambda data: rewritten(data, config=b'{"class_name": '),
    "config is something else": lambda data: rewritten(data, config=b"[1, 2]"),
    "weights are no HDF5": lambda data: rewritten(data, model=b"nothing"),
    "weights are cut short": lambda data: rewritten(data, model=zipped(data, "model.weights.h5")[:5000]),
    "unknown class": lambda data: rewritten(data, config=zipped(data, "config.json").replace(b"Flatten", b"Flutter")),
    "unknown quantizer": lambda data: rewritten(data, config=zipped(data, "config.json").replace(b"qi>We", b"qi>Wo")),
}


def zipped(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return file.read(name)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_refused(damage: Any, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(damage(archive))
    assert path.read_bytes() != archive
    with pytest.raises(FileFormatError, match=r"model\.keras"):
        load_model(path)


@pytest.mark.parametrize("name", ["empty", "no archive", "half", "all but the last byte"])
def test_a_truncated_file_is_called_one(name: str, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(DAMAGE[name](archive))
    with pytest.raises(FileFormatError, match="which is truncated or no archive"):
        load_model(path)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")  # Keras 3.15.1 warns before it raises
def test_codes_of_another_shape_are_refused(archive: bytes, tmp_path: Path) -> None:
    with h5py.File(io.BytesIO(zipped(archive, "model.weights.h5")), "r") as old:
        changed = io.BytesIO()
        with h5py.File(changed, "w") as new:
            for name in old:
                old.copy(name, new)
            found: list[str] = []
            new.visit(lambda name: found.append(name) if name.endswith(":codes") else None)
            codes = new[found[0]][()]
            del new[found[0]]
            new[found[0]] = codes[:-1]
    path = tmp_path / "model.keras"
    path.write_bytes(rewritten(archive, model=changed.getvalue()))
    with pytest.raises(FileFormatError, match="1 objects could not be loaded"):
        load_model(path)


@pytest.mark.parametrize(
    "kind", [zlib.error, zipfile.BadZipFile, OverflowError, RuntimeError, AttributeError, KeyError, OSError]
)
def test_whatever_reading_a_damaged_file_raises_is_one_error(
    kind: type[Exception], archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise kind("bad heap free list")

    (tmp_path / "model.keras").write_bytes(archive)
    monkeypatch.setattr(keras.models, "load_model", fail)
    with pytest.raises(FileFormatError, match=r"expected a readable Keras model.*bad heap free list"):
        load_model(tmp_path / "model.keras")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which doesn't exist"):
        load_model(tmp_path / "missing.keras")
    with pytest.raises(FileFormatError, match=r"expected a \.keras or \.h5 file.*a folder"):
        load_model(tmp_path)
    (tmp_path / "model.txt").write_text("a model")
    with pytest.raises(FileFormatError, match="File format not supported"):
        load_model(tmp_path / "model.txt")


def test_options_reach_keras(model: keras.Model, tmp_path: Path) -> None:
    model.compile("sgd", "mse")
    path = save_model(model, tmp_path / "model.keras")
    assert load_model(path).compiled
    assert not load_model(path, compile=False).compiled
