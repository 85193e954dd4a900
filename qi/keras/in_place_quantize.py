"""What is quantized how in a model whose call can't be followed, what calibration sees of it, and the report's rows.

See `qi.keras.in_place` for how quantizers get into such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.core import sqnr_db
from qi.errors import ConfigError, UnsupportedError
from qi.keras.assemble import Weights, unasked
from qi.keras.calibrate import Calibration
from qi.keras.choose import activation_quantizer
from qi.keras.data import batches, count_batches
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.graph import Call, Graph, Value, is_graph_model
from qi.keras.in_place import attach, copy_model, detached, observed, parts_of, wrappers_of
from qi.keras.layers import build_by
from qi.keras.plan import Group
from qi.keras.rows import activation_row, original_weights, weight_rows
from qi.keras.running import eagerly, stateless_call, translated
from qi.keras.trace import input_shapes, is_shape, trace_model
from qi.keras.traits import Role, known_range, role_of
from qi.keras.variables import is_builtin, own_variables, to_numpy, weights_of
from qi.keras.weights import weight_quantizers
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger import Row
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.recipes import RecipeLike, RuleBook, TensorSpec, get_recipe
from qi.typing import Shape

__all__ = [
    "InPlace",
    "Part",
    "calibrate_in_place",
    "convert_in_place",
    "prepare_in_place",
    "put_quantizers",
    "quantized_rows",
    "why_in_place",
]


@dataclass(eq=False)
class Part:
    """A layer of the model, and what becomes of it.

    Attributes:
        layer: of the copy.
        path: its place.
        spec: how its outputs are quantized; None: in float, for the reason.
        reason: why.
        fixed: the range of its outputs, where that is known beforehand.
        inputs: shapes of what it was given, at its first call.
        outputs: statistics of each of its outputs; none before calibration, or where one isn't a real tensor.
        shapes: of its outputs, at its first call.
    """

    layer: keras.layers.Layer
    path: str
    spec: TensorSpec | None = None
    reason: str = ""
    fixed: tuple[float, float] | None = None
    inputs: list[tuple[int | None, ...]] = field(default_factory=list)
    outputs: list[TensorStatistics] = field(default_factory=list)
    shapes: list[tuple[int | None, ...]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Its class' name."""
        return type(self.layer).__name__

    @property
    def names(self) -> list[str]:
        """Of its outputs, in statistics and reports."""
        return [self.path + (f":{index}" if index else "") for index in range(len(self.outputs))]

    @property
    def call(self) -> Call:
        """It as a call of a graph, for those who ask for shapes."""
        given, made = (
            [Value(shape, "float32") for shape in shapes or [(None, None)]] for shapes in (self.inputs, self.shapes)
        )
        return Call(self.layer, self.path, self.path, given, made)

    def see(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Takes in what one call was given and gave."""
        if not self.shapes:
            self.inputs = [_open(x) for x in inputs if hasattr(x, "shape")]
            self.shapes = [_open(x) for x in outputs if hasattr(x, "shape")]
        if self.spec is None:
            return
        real = all(hasattr(x, "dtype") and "float" in keras.backend.standardize_dtype(x.dtype) for x in outputs)
        if not real or (self.outputs and len(outputs) != len(self.outputs)):
            self.spec, self.outputs = None, []
            self.reason = "its calls give other things than a fixed number of tensors of real numbers"
            return
        self.outputs = self.outputs or [TensorStatistics() for _ in outputs]
        for seen, x in zip(self.outputs, outputs, strict=True):
            seen.update(np.asarray(keras.ops.convert_to_numpy(x)))


def _open(x: Any) -> tuple[int | None, ...]:
    shape = tuple(x.shape)
    return (None, *shape[1:]) if shape else ()


_MEASURED_ELEMENTS = 2**22  # of the activations that are kept to measure errors: 16 MiB
_OWN = "the model holds it itself; a layer that holds it would be quantized"
_INPUT = "models that are quantized in place get their inputs as they are"


@dataclass(eq=False)
class InPlace:
    """A model on its way: a copy, its parts, the recipe's decisions, and what calibration saw.

    Attributes:
        copy: of the float model, to be changed.
        record: of the float model, as Keras serializes it, and how it was `build`.
        book: the recipe's decisions.
        parts: by path.
        graph: the inputs alone, for who checks data.
        calibration: what was seen.
        kept: what the first sample made of each part's first call.
    """

    copy: keras.Model
    record: dict[str, Any]
    build: dict[str, Any]
    book: RuleBook
    parts: dict[str, Part]
    graph: Graph
    calibration: Calibration = field(default_factory=Calibration)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def statistics(self) -> dict[str, TensorStatistics]:
        """What was seen, by the name of the output."""
        return {n: s for part in self.parts.values() for n, s in zip(part.names, part.outputs, strict=True)}

    @property
    def watched(self) -> list[Part]:
        """Parts whose ranges calibration has to find."""
        return [part for part in self.parts.values() if part.spec is not None and part.fixed is None]


def prepare_in_place(model: keras.Model, recipe: RecipeLike) -> InPlace:
    """A copy of the model and its parts.

    Raises:
        InputError: an unbuilt model, one that its configuration doesn't give again, or one with NaN in its weights.
        ConfigError: an unknown recipe.
        UnsupportedError: a model that is quantized already, or whose call takes several arguments.
    """
    shapes = input_shapes(model)
    book = get_recipe(recipe).resolve()
    copy, record, build = copy_model(model)
    parts = {path: Part(layer, path) for path, layer in parts_of(copy).items()}
    done = [path for path, part in parts.items() if isinstance(part.layer, KerasQuantizationWrapper)]
    if done:
        raise UnsupportedError(
            f"expected a float model; received {model.name!r}, in which {len(done)} layers are quantized ({done[0]!r}...); "
            "do start from the float model"
        )
    for part in parts.values():
        call = Call(part.layer, part.path, part.path, [Value((), "float32")], [])
        if role_of(call) is Role.KEEPS:
            part.reason = "it only moves values, which are on a grid before"
            continue
        part.spec, part.reason = book.activations_for(part.path, part.kind)
        part.fixed = known_range(call) if role_of(call) is Role.FIXED else None
    graph = Graph(model.name, _values(shapes, "input"), [], [])
    return InPlace(copy, record, build, book, parts, graph)


def _values(shapes: Any, name: str) -> Any:
    """Values of the inputs in the structure of their shapes; nothing tells their types."""
    if isinstance(shapes, dict):
        return {key: _values(shape, str(key)) for key, shape in shapes.items()}
    if is_shape(shapes):
        return Value((None, *shapes[1:]), "float32", name=name)
    return type(shapes)([_values(shape, f"{name}_{index + 1}") for index, shape in enumerate(shapes)])


def why_in_place(model: Any) -> str:
    """Why a model's graph isn't known, so that its layers are quantized where they are; "" where it is known.

    Raises:
        InputError: a model that isn't built.
        UnsupportedError: a call that takes several arguments.
    """
    if not isinstance(model, keras.Model) or is_graph_model(model):
        return ""
    input_shapes(model)
    try:
        with trace_model(model):
            return ""
    except UnsupportedError as error:
        return str(error).partition("; do ")[0]


def calibrate_in_place(
    ready: InPlace, data: Any, statistics: Mapping[str, TensorStatistics] | None, batch_size: int, progress: bool
) -> None:
    """Runs the data through the copy, layer by layer as its call does; or takes what an earlier calibration saw.

    Raises:
        InputError: illegal data, or data on which the model raises an error.
    """
    if statistics is not None:
        _take(ready, statistics)
        return
    if data is None and not ready.watched:
        return
    result = ready.calibration
    bar = keras.utils.Progbar(count_batches(data, batch_size), unit_name="batch", verbose=int(progress))
    done = 0
    for inputs, count in batches(data, ready.graph, batch_size):
        if not result.samples:
            result.sample = [array[:16].copy() for array in inputs]
        result.samples += count
        _run(ready, inputs, lambda path, given, made: ready.parts[path].see(given, made))
        done += 1
        bar.update(done, finalize=False)
    bar.update(done, finalize=True)
    ready.kept = _first_outputs(ready, ready.copy)
    for part in ready.watched:
        if not part.outputs:
            part.spec, part.reason = None, "the call never ran it on the calibration data"


def _take(ready: InPlace, statistics: Mapping[str, TensorStatistics]) -> None:
    ready.calibration.source = "stored statistics"
    for part in ready.parts.values():
        found: list[TensorStatistics] = []
        while (name := part.path + (f":{len(found)}" if found else "")) in statistics:
            found.append(statistics[name])
        part.outputs, part.shapes = found, [(None, None)] * len(found)  # only data tell shapes
        if part.spec is not None and not found:
            part.spec, part.reason = None, "the statistics know nothing of it"


def _run(ready: InPlace, inputs: list[np.ndarray], see: Callable[..., None], model: keras.Model | None = None) -> None:
    """One call of a model, in inference and not compiled."""
    model = ready.copy if model is None else model
    named = {value.name: array for value, array in zip(ready.graph.flat_inputs(), inputs, strict=True)}
    shapes = [value.shape for value in ready.graph.flat_inputs()]
    layers = {path: part.layer for path, part in ready.parts.items()}
    with translated(model.name, named, shapes), eagerly(), observed(layers, see):
        stateless_call(model, keras.tree.pack_sequence_as(ready.graph.inputs, inputs))


def _first_outputs(ready: InPlace, model: keras.Model) -> dict[str, list[np.ndarray]]:
    """What each part's first call gives of the kept sample, as far as memory allows."""
    kept: dict[str, list[np.ndarray]] = {}
    left = _MEASURED_ELEMENTS

    def see(path: str, given: list[Any], made: list[Any]) -> None:
        nonlocal left
        if path in kept or ready.parts[path].spec is None:
            return
        arrays = [np.asarray(keras.ops.convert_to_numpy(x)) for x in made]
        left -= sum(array.size for array in arrays)
        if left >= 0:
            kept[path] = arrays

    if ready.calibration.sample:
        _run(ready, ready.calibration.sample, see, model)
    return kept


Adapt = Callable[[BaseInferableQuantizer, Shape, bool], BaseQuantizer]


def put_quantizers(ready: InPlace, adapt: Adapt | None = None) -> tuple[keras.Model, Weights, dict[str, Any]]:
    """Hooks wrappers into the copy.

    Args:
        ready: calibrated.
        adapt: makes of each inferable quantizer, its tensor's shape and whether its range is fixed the one to put in; by default
            they are put in as they are, and frozen.

    Returns:
        (the model, what became of the weights, the inferable quantizers of each part's outputs by path).
    """
    weights = Weights()
    wrappers: dict[str, KerasQuantizationWrapper] = {}
    made: dict[str, list[BaseInferableQuantizer]] = {}
    for path, part in ready.parts.items():
        originals = _weights_of(part.layer)
        found, reasons = weight_quantizers(part.layer, path, originals, ready.book, "")
        made[path] = _output_quantizers(part)
        if found or made[path]:
            put = lambda q, shape, fixed=False: q if adapt is None else adapt(q, shape, fixed)
            bound = {name: put(q, originals[name].shape) for name, q in found.items()}
            outputs = [put(q, (1,), part.fixed is not None) for q in made[path]]
            name = f"quant_{path.replace('/', '_')}"
            wrapper = KerasQuantizationWrapper(part.layer, KerasNodeQuantizationDispatcher(bound, outputs), name=name)
            wrapper.build(None)
            wrappers[path] = wrapper.freeze(in_place=True) if adapt is None else wrapper
        call = part.call
        call.op = wrappers.get(path, part.layer)
        weights.rows += weight_rows([call], originals, reasons, part.kind)
    weights.rows += _own_rows(ready.copy)
    weights.refused += [row for row in weights.rows if not row.quantized and unasked(row, ready.book)]
    model = attach(ready.copy, wrappers, ready.record, ready.build)
    return model, weights, made


def _own_rows(model: keras.Model) -> list[Row]:
    """Rows of the variables that no layer of a model holds."""
    own = {id(variable) for variable in own_variables(model)}
    mine = {path: to_numpy(v) for path, v in weights_of(model).items() if id(v) in own}
    nowhere = [Value((None, None), "float32")]
    return weight_rows(
        [Call(model, model.name, model.name, nowhere, nowhere)], mine, dict.fromkeys(mine, _OWN), type(model).__name__
    )


def _weights_of(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """The float weights of a part; of one that is made of others, its own."""
    originals = original_weights(layer)
    if not is_builtin(layer):
        mine = {id(variable) for variable in own_variables(layer)}
        return {path: originals[path] for path, v in weights_of(layer).items() if id(v) in mine and path in originals}
    return originals


def _output_quantizers(part: Part) -> list[BaseInferableQuantizer]:
    if part.spec is None or not part.outputs:
        return []
    groups = [Group(part.spec, part.fixed, names=[name]) for name in part.names]
    return [activation_quantizer(group, seen) for group, seen in zip(groups, part.outputs, strict=True)]


def quantized_rows(
    ready: InPlace, model: keras.Model, weights: Weights, made: Mapping[str, list[BaseInferableQuantizer]]
) -> list[Row]:
    """The rows of a report: each layer's weights and what it gives, in the order in which the layers are held."""
    after = _first_outputs(ready, model)
    rows = [activation_row(v.name, "InputLayer", v.shape, _INPUT, name="input") for v in ready.graph.flat_inputs()]
    rows += [row for row in weights.rows if row.layer == ready.copy.name]
    for path, part in ready.parts.items():
        rows += [row for row in weights.rows if row.layer == path]
        if not made[path] or part.spec is None:
            reason = part.reason or "no rule of the recipe covers it"
            rows.append(activation_row(path, part.kind, next(iter(part.shapes), ()), reason))
            continue
        exact = ready.kept.get(path, [None] * len(part.names))
        results = after.get(path, [None] * len(part.names))
        for index, quantizer in enumerate(made[path]):
            group = Group(part.spec, part.fixed, names=[part.names[index]])
            errors = None
            if exact[index] is not None and results[index] is not None:
                errors = sqnr_db(exact[index], quantizer(exact[index])), sqnr_db(exact[index], results[index])
            found = (group, quantizer, part.outputs[index])
            rows.append(activation_row(part.names[index], part.kind, part.shapes[index], found, errors))
    return rows


def convert_in_place(model: keras.Model) -> keras.Model:
    """The inferable model that a trained one became.

    Raises:
        ConfigError: none of its quantizers trains.
        InputError: training left NaN or infinities.
    """
    old = wrappers_of(model)
    if not any(wrapper.trains for wrapper in old.values()):
        raise ConfigError(
            f"expected a model with trainable quantizers; received {model.name!r}, which has none or is converted already; "
            "do give what prepare_qat returned"
        )
    record, build = detached(model)
    copy = keras.saving.deserialize_keras_object(record)
    build_by(copy, build)
    theirs = weights_of(model)
    for path, variable in weights_of(copy).items():
        variable.assign(to_numpy(theirs[path]))  # an array of its own: training gives buffers away
    parts = parts_of(copy)
    wrappers = {}
    for path, wrapper in old.items():
        mine = weights_of(parts[path])
        for name, value in wrapper.get_quantized_weights().items():
            mine[name].assign(value)
        dispatcher = KerasNodeQuantizationDispatcher(wrapper.quantizers, wrapper.output_quantizers)
        new = KerasQuantizationWrapper(parts[path], dispatcher, name=wrapper.name)
        new.build(None)
        wrappers[path] = new.freeze(in_place=True)
    return attach(copy, wrappers, record, build)
