"""import_ranges: the integers of a file that somebody else made, in the quantizers of the Keras model that it was made from."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qi.core import IntGrid, QParams
from qi.errors import ConfigError, InputError, QuantizationWarning, StrictError
from qi.exporters.call_views import view_of
from qi.exporters.formats import format_of, path_of
from qi.exporters.import_findings import findings
from qi.exporters.match_graph import CallView, Matching, match, shaped_like
from qi.exporters.match_parts import split_gains, split_swish
from qi.exporters.match_weights import common_bias, weight_quantizer
from qi.exporters.vendor import Constant, VendorGraph
from qi.files import read_limited
from qi.ledger import QuantizationReport
from qi.quantizers import ActivationUniformInferableQuantizer, BaseInferableQuantizer

__all__ = ["import_ranges"]

_MOST_BYTES = 2**31
_RECIPE = "w8a8"  # takes apart what files hold in parts; it decides nothing else
_LEAST_SHARE = 0.5


def import_ranges(path: str | os.PathLike[str], model: Any, *, strict: bool = False) -> tuple[Any, QuantizationReport]:
    """Reads a quantized file of another tool back into the Keras model that it was made from.

    Weights are found by what they hold, and by their place in the graph; activations by walking both graphs from there. What is
    found has the file's integers, scales, zero points and biases, exactly: so that `qi.emulate`, `qi.export` and the report tell
    of what is deployed already, and training can start from it. Files may be quantized as a whole or in part, their weights with
    2, 4, 8 or 16 bits, for the tensor, for channels or blocks, signed or unsigned.

    Where a file does in steps what is one layer in Keras, and rounds to codes between them, the model has these steps, too: swish
    as a product with a sigmoid, the factor of attention as a Rescaling. Not in a Keras model, and so not imported, but told of by
    name: how constants that are added or multiplied were rounded, the parts of a layer normalization in codes, and products whose
    runtime rounds what they take as it comes. Weights with a zero point (other than that of symmetric codes) are imported; ONNX
    Runtime alone can run them.

    Args:
        path: ends in ".tflite" (TFLiteConverter, AI Edge Quantizer) or ".onnx" (ONNX Runtime's quantizer: QDQ, QOperator,
            dynamic).
        model: the float model, as of `quantize_model`; it is left as it is.
        strict: raise where a weight or an activation isn't found in the file; by default it stays in float, and the report says
            why.

    Returns:
        (quantized model, report), as of `quantize_model`.

    Raises:
        FileFormatError: a damaged file, or something else.
        InputError: a file without quantized weights, or of another model: it tells how many weights were found.
        ConfigError: a path that ends in something else.
        StrictError: with strict; all that wasn't found is listed.
        UnsupportedError: a model that is quantized already, or can't be followed.
        MissingDependencyError: for an ONNX file, without the package onnx.
        OSError: the file can't be read.

    Example:
        >>> import keras, numpy as np, os, qi, tempfile
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = qi.export(qmodel, os.path.join(folder, "vendor.tflite"), samples=x, latency=False)
        ...     again, _ = import_ranges(os.path.join(folder, "vendor.tflite"), model)
        >>> bool(np.array_equal(again.predict(x, verbose=0), qmodel.predict(x, verbose=0)))
        True
    """
    from qi.keras.prepare import prepare
    from qi.keras.verify import check_copies

    file = _read(path_of(path))
    job = _Import(file, Path(path).name)
    if file.changed:
        job.told.append(f"{job.name} was changed after QI wrote it: what it holds now is imported")
    ready = prepare(model, _RECIPE, planner=job.plan)
    check_copies(ready.given, ready.graph, [])
    result, rows = job.assemble(ready)
    if strict and job.missing:
        lines = "\n".join(f"  {name}: {why}" for name, why in job.missing.items())
        raise StrictError(
            f"expected all of the model in the file (strict=True); {len(job.missing)} tensors weren't found:\n{lines}\n"
            "do pass strict=False, which leaves them in float"
        )
    return result, _report(job, model, result, rows)


def _read(path: Path) -> VendorGraph:
    kind = format_of(path).name
    data = read_limited(path, _MOST_BYTES)
    if kind == "litert":
        from qi.exporters.read_litert import read_litert

        file = read_litert(data)
    else:
        from qi.exporters.read_onnx import read_onnx

        file = read_onnx(data)
    weights = [node.weight for node in file.nodes if node.weight is not None]
    if not any(weight.quantized for weight in weights):
        raise InputError(
            f"expected a quantized file; received {path.name!r}, in which all {len(weights)} weights of products are float; "
            "do quantize the model with qi.quantize_model"
        )
    return file


def _report(job: _Import, model: Any, result: Any, rows: list[Any]) -> QuantizationReport:
    from qi.keras.data import elements
    from qi.keras.running import predict
    from qi.keras.saving import size_on_disk

    told = [f"{len(job.missing)} tensors stay in float, as {job.name} has nothing like them"] if job.missing else []
    report = QuantizationReport(
        recipe="imported",
        model=model.name,
        description=f"the integers of {job.name}",
        rows=tuple(rows),
        warnings=told + job.told,
        settings={"file": job.name, "weights_found": job.weights_found, "weights_in_file": job.weights_in_file},
        float_file_bytes=size_on_disk(model),
        quantized_file_bytes=size_on_disk(result),
    )
    for line in report.all_warnings:
        warnings.warn(line, QuantizationWarning, stacklevel=3)
    return report.attach(float_model=model, quantized_model=result, predict=predict, batches=elements)


@dataclass(eq=False)
class _Import:
    """One import on its way.

    Attributes:
        file: what is imported.
        name: the file's.
        missing: why a tensor of the model has none in the file, by name.
        told: what else the user should hear of.
    """

    file: VendorGraph
    name: str
    missing: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    weights_in_file: int = 0
    weights_found: int = 0
    _views: list[CallView] = field(default_factory=list)
    _found: Matching = field(default_factory=Matching)
    _quantizers: dict[int, BaseInferableQuantizer] = field(default_factory=dict)
    _params: dict[int, QParams] = field(default_factory=dict)  # by id(group)
    _edges: list[tuple[Any, int, QParams]] = field(default_factory=list)

    # The plan -----------------------------------------------------------------------------------------------------------

    def plan(self, graph: Any, book: Any) -> Any:
        """The plan of activations: which value has which scale of the file.

        Raises:
            InputError: a file of another model.
        """
        from qi.keras.fold import split_activations
        from qi.keras.plan import plan_activations
        from qi.keras.weights import has_policy
        from qi.recipes.plan import ActivationPlan

        split_activations(graph, has_policy, fused=("linear",))
        split_swish(graph, self.file)
        self._match(graph)
        if split_gains(graph, self._views, self._found, self.file):
            self._match(graph)
        usual = plan_activations(graph, book)
        self._count()
        self.told += findings(self._views, self._found, self.file)
        plan = ActivationPlan()
        for value in graph.flat_inputs():
            self._decide(value, None, plan, usual)
        for view in self._views:
            taken = self._taken(view, plan)
            for value in view.call.outputs:
                self._decide(value, (view, taken), plan, usual)
        return plan

    def _match(self, graph: Any) -> None:
        self._views = [view_of(call) for call in graph.calls]
        self._found = match(self._views, self.file, graph.flat_inputs(), graph.flat_outputs())

    def _count(self) -> None:
        matched = {id(node) for node in self._found.nodes.values()}
        quantized = [node for node in self.file.nodes if node.weight is not None and node.weight.quantized]
        self.weights_in_file, self.weights_found = len(quantized), sum(id(node) in matched for node in quantized)
        if self.weights_found < _LEAST_SHARE * self.weights_in_file:
            raise InputError(
                f"expected a file that was made from this model; of the {self.weights_in_file} quantized weights of "
                f"{self.name!r}, {self.weights_found} are like one of the model's; do give the float model with the very weights"
            )

    def _decide(self, value: Any, given: tuple[CallView, list[QParams | None]] | None, plan: Any, usual: Any) -> None:
        """What becomes of a value: a scale of its own, that of an input, or none."""
        from qi.keras.traits import role_of
        from qi.recipes.plan import Role

        if not value.is_float:
            plan.floats[id(value)] = f"holds {value.dtype}, not real numbers"
            return
        call = value.producer
        keeps = call is not None and (role_of(call) is Role.KEEPS or (given is not None and given[0].kind == "move"))
        place = self._found.places.get(id(value))
        params = _times(self.file.settled(place), self._found.factor(value)) if place is not None else None
        before = plan.group_of(call.inputs[0]) if keeps else None
        if before is not None and (params is None or params == self._params[id(before)]):
            plan.inherited[id(value)] = before
        elif params is None and (id(value) in usual.fused or id(value) in self._found.absorbed):
            plan.fused.add(id(value))
        elif params is None:
            self._leave(value, place is not None or keeps, plan)
        elif id(value) in usual.fused and self._clamp_has(value, params):
            plan.fused.add(id(value))
        elif given is not None and role_of(call) is Role.JOINS and all(taken == params for taken in given[1]):
            plan.inherited[id(value)] = self._group(value, params, plan)
        else:
            plan.quantized[id(value)] = self._group(value, params, plan)

    def _leave(self, value: Any, known: bool, plan: Any) -> None:
        from qi.keras.plan import value_name

        why = "real numbers in the file" if known else "no tensor of the file was found for it"
        plan.floats[id(value)] = why
        if not known:
            self.missing[value_name(value)] = why

    def _group(self, value: Any, params: QParams, plan: Any) -> Any:
        from qi.keras.plan import value_name
        from qi.recipes import TensorSpec
        from qi.recipes.plan import Group

        group = Group(TensorSpec(bits=_grid(params).bits, method="uniform"), None, [value], [value_name(value)])
        plan.groups.append(group)
        self._params[id(group)] = params
        self._quantizers[id(group)] = _activation_quantizer(params)
        return group

    def _clamp_has(self, value: Any, params: QParams) -> bool:
        """Whether the clamp behind a value gives codes of the very same scale: then one step to codes is enough."""
        for view in self._views:
            if any(v is value for v in view.call.inputs):
                place = self._found.places.get(id(view.call.outputs[0]))
                factor = self._found.factor(view.call.outputs[0])
                return place is not None and _times(self.file.settled(place), factor) == params
        return False

    def _taken(self, view: CallView, plan: Any) -> list[QParams | None]:
        """The scale with which a call takes each input; where that isn't the input's own, an edge for it."""
        node, found = self._found.nodes.get(id(view.call)), []
        for i, value in enumerate(view.call.inputs):
            group = plan.group_of(value)
            own = self._params[id(group)] if group is not None else None
            place = self._found.place(value)
            stated = next(
                (self.file.stated(t) for t in (node.inputs if node else ()) if self.file.root(t) is place), None
            )
            stated = _times(stated, self._found.factor(value)) if id(value) not in self._found.folded else None
            if stated is not None and stated != own and value.is_float:
                self._edges.append((view.call, i, stated))
            found.append(own if stated is None else stated)
        return found

    # The model ----------------------------------------------------------------------------------------------------------

    def assemble(self, ready: Any) -> tuple[Any, list[Any]]:
        """(the quantized model, rows of its report)."""
        from qi.keras.assemble import frozen_wrapper, insert_holders, wrap_layers
        from qi.keras.graph import Graph, build_model, build_tensors
        from qi.keras.rows import activation_rows, describe, in_graph_order
        from qi.keras.variables import weights_of

        graph = ready.graph
        types = {id(call): describe(call) for call in graph.calls}
        before = Graph(graph.name, graph.inputs, graph.outputs, list(graph.calls))
        chosen, reasons = self._weights(graph)
        self._assign_norms()

        def wrap(layer: Any, quantizers: Any, within: Any) -> Any:
            del quantizers, within  # the recipe's
            quantizer, values = chosen[id(layer)]
            variables = weights_of(layer)
            for path, array in values.items():
                variables[path].assign(array.reshape(tuple(variables[path].shape)))
            return frozen_wrapper(layer, quantizer)

        weights = wrap_layers(graph, ready.book, ready.kept, reasons | ready.notes, types, wrap)
        insert_holders(graph, ready.plan, self._quantizers)
        self._insert_edges(graph)
        result = build_model(graph, build_tensors(graph))
        activations = activation_rows(before, ready.plan, self._quantizers, {}, {}, types)
        return result, in_graph_order(before, weights.rows, activations)

    def _weights(
        self, graph: Any
    ) -> tuple[dict[int, tuple[dict[str, BaseInferableQuantizer], dict[str, np.ndarray]]], dict[str, str]]:
        """For each layer by ``id``: quantizers and values by path; and why others stay in float, by the path of the layer."""
        from qi.keras.weights import has_policy

        chosen: dict[int, tuple[dict[str, BaseInferableQuantizer], dict[str, np.ndarray]]] = {}
        reasons: dict[str, str] = {}
        views = {id(view.call): view for view in self._views}
        for calls in graph.calls_of().values():
            view = views[id(calls[0])]
            if view.weight is None:
                if has_policy(calls[0].op):
                    why = "weights that are parts of a layer, or of a user's own, aren't looked for"
                    reasons[calls[0].path] = self.missing[calls[0].path] = why
                continue
            nodes = [self._found.nodes.get(id(call)) for call in calls]
            known = [node.weight for node in nodes if node is not None and node.weight is not None]
            name = f"{calls[0].path}/{view.path}"
            if not known:
                reasons[calls[0].path] = self.missing[name] = self._found.reasons[id(calls[0])]
            elif not known[0].quantized:
                reasons[calls[0].path] = "real numbers in the file"
            elif any(not _equal(known[0], other) for other in known[1:]):
                reasons[calls[0].path] = self.missing[name] = "the file has other weights for each call of it"
            else:
                try:
                    chosen[id(calls[0].op)] = self._chosen(view, calls[0], nodes, known[0])
                except ConfigError as error:
                    reasons[calls[0].path] = self.missing[name] = str(error)
        return chosen, reasons

    def _chosen(self, view: CallView, call: Any, nodes: list[Any], weight: Constant) -> Any:
        from qi.keras.variables import to_numpy, weights_of

        shape = tuple(np.shape(view.weight)) if view.weight is not None else ()
        shaped = shaped_like(weight, shape)
        if shaped is None:
            raise ConfigError(f"expected a weight of shape {shape}; received {weight.data.shape}")
        gain = self._found.gains.get(id(view.call))
        if gain is not None and shaped.scale is not None and shaped.zero_point is not None:
            scale = (shaped.scale * gain).astype(np.float32)
            zero_point = np.broadcast_to(shaped.zero_point, scale.shape)
            shaped = Constant(shaped.name, shaped.data, scale, zero_point, shaped.bits)
            self.told.append(
                f"{call.path!r} has the file's integers, but other scales: the file has a factor of "
                f"{float(np.mean(gain)):.4g} elsewhere"
            )
        quantizer, real = weight_quantizer(shaped)
        values = {view.path: real}
        biases = [node.bias for node in nodes if node is not None and node.bias is not None]
        own = weights_of(call.op).get("bias")
        if own is None and any(bias.data.any() for bias in biases):
            self.told.append(f"the file adds a bias in {call.path!r}, which has none in the model: it is left out")
        fitting = own is not None and all(bias.data.size == int(np.prod(own.shape)) for bias in biases)
        apart = gain is not None or any(id(value) in self._found.folded for value in call.inputs)
        if biases and fitting and not apart:  # otherwise the file may add it elsewhere, or more than it
            values["bias"] = common_bias(to_numpy(own), biases)
        return {view.path: quantizer}, values

    def _assign_norms(self) -> None:
        """Gives normalizations the factors and shifts that the file rounded."""
        from qi.keras.variables import weights_of

        for view in self._views:
            node = self._found.nodes.get(id(view.call))
            if view.kind != "norm" or node is None:
                continue
            variables = weights_of(view.call.op)
            for path, constant in zip(("gamma", "beta"), node.constants, strict=False):
                if (
                    constant.quantized
                    and path in variables
                    and constant.data.size == int(np.prod(variables[path].shape))
                ):
                    variables[path].assign(constant.real().reshape(tuple(variables[path].shape)))

    def _insert_edges(self, graph: Any) -> None:
        """Quantizers for what a single call takes in another scale than the value has."""
        from qi.keras.graph import Call, Value
        from qi.keras.holder import KerasActivationQuantizationHolder

        taken = {call.op.name for call in graph.calls} | {value.name for value in graph.flat_inputs()}
        made: dict[tuple[int, QParams], Any] = {}
        for call, i, params in self._edges:
            source = call.inputs[i]
            if (id(source), params) not in made:
                name, count = f"{call.op.name}_input_quant", 1
                while name in taken:
                    count += 1
                    name = f"{call.op.name}_input_quant_{count}"
                taken.add(name)
                value = Value(source.shape, source.dtype)
                holder = KerasActivationQuantizationHolder(_activation_quantizer(params), name=name)
                value.producer = Call(holder, name, name, [source], [value])
                graph.calls.insert(graph.calls.index(call), value.producer)
                made[id(source), params] = value
            call.inputs = [made[id(source), params] if j == i else v for j, v in enumerate(call.inputs)]


def _activation_quantizer(params: QParams) -> BaseInferableQuantizer:
    """With just this scale and zero point; signed codes are moved up by half of their range, which changes no number."""
    grid = _grid(params)
    shift = 1 << (grid.bits - 1) if grid.signed else 0
    plain = ActivationUniformInferableQuantizer(grid.bits, -1.0, 1.0)
    return plain.with_qparams(params.scale.reshape(()), params.zero_point.reshape(()) + shift)


def _grid(params: QParams) -> IntGrid:
    """The grid, which readers make of integers only."""
    if not isinstance(params.grid, IntGrid):
        raise ConfigError(f"expected integers; received {params.grid}")
    return params.grid


def _times(params: QParams | None, factor: float) -> QParams | None:
    """Scale and zero point of a value that is a tensor times something."""
    return (
        params
        if params is None or factor == 1.0
        else QParams(params.scale * np.float32(factor), params.zero_point, params.grid)
    )


def _equal(a: Constant, b: Constant) -> bool:
    pairs = ((a.data, b.data), (a.scale, b.scale), (a.zero_point, b.zero_point))
    return all(
        (p is None and q is None) or (p is not None and q is not None and np.array_equal(p, q)) for p, q in pairs
    )
