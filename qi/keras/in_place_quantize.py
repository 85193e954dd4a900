"""What is quantized how in a model whose call can't be followed, what calibration sees of it, and the report's rows.

See `qi.keras.in_place` for how quantizers get into such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError, UnsupportedError
from qi.keras.assemble import Weights
from qi.keras.calibrate import Calibration
from qi.keras.data import batches, count_batches
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.given import check_layers
from qi.keras.graph import Call, Graph, Value
from qi.keras.in_place import attach, copy_model, detached, wrappers_of
from qi.keras.moving import MOVES, moved_by
from qi.keras.parts import (
    IN_PLACE,
    UNSEEN,
    AdaptWithin,
    Part,
    outputs_seen,
    part_rows,
    parts_in_place,
    parts_of,
    quantizers_within,
    recording,
)
from qi.keras.rows import activation_row, original_weights, weight_rows, whole_rows
from qi.keras.running import eagerly, stateless_call, translated
from qi.keras.ties import Once
from qi.keras.trace import input_shapes, is_shape
from qi.keras.variables import is_builtin, own_variables, to_numpy, weights_of
from qi.keras.weights import weight_quantizers
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger import Row
from qi.ledger.findings import unasked
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.recipes import RecipeLike, RuleBook, get_recipe
from qi.typing import Shape

__all__ = [
    "InPlace",
    "Part",
    "calibrate_in_place",
    "convert_in_place",
    "prepare_in_place",
    "put_quantizers",
    "quantized_rows",
]


_MEASURED_ELEMENTS = 2**22  # of the activations that are kept to measure errors: 16 MiB
_OWN = "the model holds it itself; a layer that holds it would be quantized"
_BETWEEN = "what the call computes between layers isn't known, and stays in float"
_INPUT = "models that are quantized in place get their inputs as they are"


@dataclass(eq=False)
class InPlace:
    """A model on its way: a copy, its parts, the recipe's decisions, and what calibration saw.

    Attributes:
        copy: of the float model, to be changed.
        record: of the float model, as Keras serializes it, and how it was `build`.
        book: the recipe's decisions.
        parts: by path.
        cells: what is quantized within each part, by path below it: cells that rules speak of, parts of attentions.
        graph: the inputs alone, for who checks data.
        calibration: what was seen.
        kept: what the sample made of each part.
    """

    copy: keras.Model
    record: dict[str, Any]
    build: dict[str, Any]
    book: RuleBook
    parts: dict[str, Part]
    cells: dict[str, dict[str, Part]]
    graph: Graph
    calibration: Calibration = field(default_factory=Calibration)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def all_parts(self) -> dict[str, Part]:
        """The parts and their cells, by path."""
        return self.parts | {part.path: part for cells in self.cells.values() for part in cells.values()}

    @property
    def statistics(self) -> dict[str, TensorStatistics]:
        """What was seen, by the name of the output."""
        return {n: s for part in self.all_parts.values() for n, s in zip(part.names, part.outputs, strict=True)}

    @property
    def watched(self) -> list[Part]:
        """Parts whose ranges calibration has to find."""
        return [part for part in self.all_parts.values() if part.watched]


def prepare_in_place(model: keras.Model, recipe: RecipeLike) -> InPlace:
    """A copy of the model and its parts.

    Raises:
        InputError: an unbuilt model, one that its configuration doesn't give again, or one with NaN in its weights.
        ConfigError: an unknown recipe.
        UnsupportedError: a model that is quantized already, or whose call takes several arguments.
    """
    shapes = input_shapes(model)
    check_layers(model)
    book = get_recipe(recipe).resolve()
    copy, record, build = copy_model(model)
    layers = parts_of(copy)
    done = [path for path, layer in layers.items() if isinstance(layer, KerasQuantizationWrapper)]
    if done:
        raise UnsupportedError(
            f"expected a float model; received {model.name!r}, in which {len(done)} layers are quantized ({done[0]!r}...); "
            "do start from the float model"
        )
    parts = {path: Part.of(layer, path, book, once=False) for path, layer in layers.items()}
    cells = {path: parts_in_place(layer, path, book) for path, layer in layers.items()}
    graph = Graph(model.name, _values(shapes, "input"), [], [])
    return InPlace(copy, record, build, book, parts, cells, graph)


def _values(shapes: Any, name: str) -> Any:
    """Values of the inputs in the structure of their shapes; nothing tells their types."""
    if isinstance(shapes, dict):
        return {key: _values(shape, str(key)) for key, shape in shapes.items()}
    if is_shape(shapes):
        return Value((None, *shapes[1:]), "float32", name=name)
    return type(shapes)([_values(shape, f"{name}_{index + 1}") for index, shape in enumerate(shapes)])


def calibrate_in_place(
    ready: InPlace, data: Any, statistics: Mapping[str, TensorStatistics] | None, batch_size: int, progress: bool
) -> None:
    """Runs the data through the copy, layer by layer as its call does; or takes what an earlier calibration saw.

    Raises:
        InputError: illegal data, or data on which the model raises an error.
    """
    if statistics is not None:
        ready.calibration.source = "stored statistics"
        for part in ready.all_parts.values():
            part.take(statistics)
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
        with recording(ready.all_parts):
            _run(ready, inputs, ready.copy)
        done += 1
        bar.update(done, finalize=False)
    bar.update(done, finalize=True)
    ready.kept = _outputs(ready, ready.copy)
    for part in ready.watched:
        if not part.outputs:
            part.spec, part.reason = None, UNSEEN


def _run(ready: InPlace, inputs: list[np.ndarray], model: keras.Model) -> None:
    """One call of a model, in inference and not compiled."""
    named = {value.name: array for value, array in zip(ready.graph.flat_inputs(), inputs, strict=True)}
    shapes = [value.shape for value in ready.graph.flat_inputs()]
    with translated(model.name, named, shapes), eagerly():
        stateless_call(model, keras.tree.pack_sequence_as(ready.graph.inputs, inputs))


def _outputs(ready: InPlace, model: keras.Model) -> dict[str, list[np.ndarray]]:
    """What each part gives of the kept sample, as far as memory allows."""
    sample = ready.calibration.sample
    return outputs_seen(ready.all_parts, lambda: _run(ready, sample, model)) if sample else {}


Adapt = Callable[[BaseInferableQuantizer, Shape, bool], BaseQuantizer]


def put_quantizers(
    ready: InPlace, adapt: Adapt | None = None, adapt_within: AdaptWithin | None = None
) -> tuple[keras.Model, Weights, dict[str, Any]]:
    """Hooks wrappers into the copy.

    Args:
        ready: calibrated.
        adapt: makes of each inferable quantizer, its tensor's shape and whether its range is fixed the one to put in; by default
            they are put in as they are, and frozen.
        adapt_within: likewise of the quantizer of an output of a cell.

    Returns:
        (the model, what became of the weights, the inferable quantizers of each part's outputs by path).
    """
    weights = Weights()
    wrappers: dict[str, KerasQuantizationWrapper] = {}
    made = {path: part.quantizers for path, part in ready.all_parts.items()}
    once = Once({path: part.layer for path, part in ready.parts.items()}, trains=adapt is not None)
    for path, part in ready.parts.items():
        originals = _weights_of(part.layer)
        found, reasons = weight_quantizers(part.layer, path, originals, ready.book, "")
        for name in moved_by(part.call) & set(found) if found else ():
            reasons[name] = MOVES
            del found[name]
        known = once.settle(part.layer, path, found, reasons)
        within = quantizers_within(ready.cells[path], adapt_within)
        if found or made[path] or within:
            put = lambda q, shape, fixed=False: q if adapt is None else adapt(q, shape, fixed)
            bound = {name: put(q, originals[name].shape) for name, q in found.items()}
            outputs = [put(q, (1,), part.fixed is not None) for q in made[path]]
            name = f"quant_{path.replace('/', '_')}"
            dispatcher = KerasNodeQuantizationDispatcher(bound, outputs, within)
            wrapper = KerasQuantizationWrapper(part.layer, dispatcher, name=name)
            wrapper.build(None)
            wrappers[path] = wrapper.freeze(in_place=True) if adapt is None else wrapper
        call = part.call
        call.op = wrappers.get(path, part.layer)
        originals = {name: array for name, array in originals.items() if name not in known}
        weights.rows += once.noted(part.layer, path, weight_rows([call], originals, reasons, part.kind))
    weights.rows += _own_rows(ready.copy, ready.book)
    weights.refused += [
        row for row in weights.rows if not row.quantized and unasked(row, ready.book.recipe.weights is not None)
    ]
    model = attach(ready.copy, wrappers, ready.record, ready.build)
    return model, weights, made


def _own_rows(model: keras.Model, book: RuleBook) -> list[Row]:
    """Rows of the variables that no layer of a model holds."""
    own = {id(variable) for variable in own_variables(model)}
    mine = {path: to_numpy(v) for path, v in weights_of(model).items() if id(v) in own}
    nowhere, kind = [Value((None, None), "float32")], type(model).__name__
    asked = {path: book.weights_for(model.name, kind, path) for path in mine}
    reasons = {path: _OWN if decision.spec is not None else decision.reason for path, decision in asked.items()}
    return weight_rows([Call(model, model.name, model.name, nowhere, nowhere)], mine, reasons, kind)


def _weights_of(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """The float weights of a part; of one that is made of others, its own."""
    originals = original_weights(layer)
    if not is_builtin(layer):
        mine = {id(variable) for variable in own_variables(layer)}
        return {path: originals[path] for path, v in weights_of(layer).items() if id(v) in mine and path in originals}
    return originals


def quantized_rows(
    ready: InPlace,
    model: keras.Model,
    weights: Weights,
    made: Mapping[str, Sequence[BaseInferableQuantizer | None]],
) -> list[Row]:
    """The rows of a report: each layer's weights and what it gives, in the order in which the layers are held."""
    after = _outputs(ready, model)
    rows = [activation_row(v.name, "InputLayer", v.shape, _INPUT, name="input") for v in ready.graph.flat_inputs()]
    rows += [row for row in weights.rows if row.layer == ready.copy.name]
    for path, part in ready.parts.items():
        rows += [row for row in weights.rows if row.layer == path]
        for each in (*ready.cells[path].values(), part):
            rows += part_rows(each, made[each.path], ready.kept, after)
        kept = IN_PLACE if is_builtin(part.layer) else ""
        rows += whole_rows(
            part.layer, path, part.kind, any(made[cell.path] for cell in ready.cells[path].values()), kept
        )
    name, kind = ready.copy.name, type(ready.copy).__name__
    return [*rows, activation_row(name, kind, (), _BETWEEN, name="between")]


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
    copy, record, build = detached(model)
    theirs = weights_of(model)
    for path, variable in weights_of(copy).items():
        variable.assign(to_numpy(theirs[path]))  # an array of its own: training gives buffers away
    parts = parts_of(copy)
    wrappers = {}
    for path, wrapper in old.items():
        mine = weights_of(parts[path])
        for name, value in wrapper.get_quantized_weights().items():
            mine[name].assign(value)
        dispatcher = KerasNodeQuantizationDispatcher(
            wrapper.quantizers, wrapper.output_quantizers, wrapper.inner_quantizers
        )
        new = KerasQuantizationWrapper(parts[path], dispatcher, name=wrapper.name)
        new.build(None)
        wrappers[path] = new.freeze(in_place=True)
    return attach(copy, wrappers, record, build)
