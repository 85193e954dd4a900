"""Gradient-based reconstruction after training: quantized layers learn to give what the float ones give, without labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError, InputError
from qi.keras.blocks import SCOPES, Block
from qi.keras.checkpoint import Checkpoint
from qi.keras.data import batches
from qi.keras.given import check_copied
from qi.keras.graph import Graph
from qi.keras.prepare import Prepared
from qi.keras.running import fixed_batch, stateless_call
from qi.keras.student import ROUNDINGS, Student, Weight, elements, paths
from qi.keras.variables import to_numpy
from qi.ledger.batches import check_batch_size
from qi.quantizers import BaseInferableQuantizer
from qi.registry import suggest

__all__ = ["Reconstructed", "reconstruct"]

_KEPT_ELEMENTS = 2**28  # samples' inputs and targets, held at once: 1 GiB
_FORWARD = 128  # samples at a time where nothing trains
_REGULARIZED = (
    0.2,
    0.7,
)  # the shares of the steps between which AdaRound's exponent falls; before, nothing is regularized
_STRENGTH = 300.0  # of that regularization, a mean over weights, for each unit of the loss before
_BETA = (20.0, 2.0)  # its exponent, from the first to the last step


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """What reconstruction found; the prepared graph is as it was.

    Attributes:
        weights: by ``(id(op), path)``: the quantizer, and the weight's new values, which lie on its grid.
        floats: the new values of biases and other offsets that trained in float, likewise.
        activations: the quantizer of each group by ``id(group)``.
        losses: of each block by name, before and after.
        fixed: why layers, by path, and groups, by the name of their first value, stayed as they were.
        samples: how many samples were used.
    """

    weights: dict[Weight, tuple[BaseInferableQuantizer, np.ndarray]]
    floats: dict[Weight, np.ndarray]
    activations: dict[int, BaseInferableQuantizer]
    losses: dict[str, tuple[float, float]]
    fixed: dict[str, str]
    samples: int


@dataclass(frozen=True)
class _Settings:
    """How a block trains."""

    rounding: str
    steps: int
    rate: float
    batch: int
    drop: float
    seed: int
    keep: bool


def reconstruct(
    ready: Prepared,
    weights: Mapping[Weight, BaseInferableQuantizer],
    activations: Mapping[int, BaseInferableQuantizer],
    data: Any,
    *,
    scope: str = "network",
    rounding: str = "lsq",
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    drop: float = 0.5,
    seed: int = 0,
    progress: bool = True,
    keep_on_interrupt: bool = False,
    resume: str | os.PathLike[str] | None = None,
    begin: Mapping[Weight, np.ndarray] | None = None,
    control: bool = False,
) -> Reconstructed:
    """Trains quantized weights, scales and biases so that blocks give what they gave in float, on unlabelled samples.

    "network" trains one quantized copy of the whole graph: its outputs against those of the float graph (the Kullback-Leibler
    divergence of a softmax, the mean squared error over the variance of all else), and those of its blocks. "block" and "layer"
    train one segment after the other: what leads into it comes from the segments that are done, at random mixed with the float
    values, and what it has to give is what it gave in float. Everything runs as at inference: nothing drops out, and
    normalizations keep their statistics.

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020 (arXiv:2004.10568); Li et al., BRECQ,
    2021 (arXiv:2102.05426); Wei et al., QDrop, 2022 (arXiv:2203.05740); steps of scales as in Esser et al., Learned Step Size
    Quantization, 2019 (arXiv:1902.08153).

    Args:
        ready: the folded float graph of copies, and its plan; only read.
        weights: the quantizers to start from by ``(id(op), path)`` for operations of ``ready.graph``; all other weights stay
            as they are, but for offsets ("bias", "beta").
        activations: those of activations by ``id(group)`` for groups of ``ready.plan``; others stay in float.
        data: samples, as of `qi.quantize_model`; labels aren't looked at.
        scope: "network", "block" (residual blocks stay whole) or "layer".
        rounding: "lsq" trains weights and scales; "adaround" keeps both and learns which way each weight is rounded.
        steps: of gradient descent for each block; by default fewer for more bits.
        learning_rate: of Adam, at the first step; it falls along a cosine. By default lower for more bits.
        batch_size: samples a step; all where there are fewer, and what the graph demands where it does.
        drop: the share of elements of a block's inputs that are float values, from 0 to 1; not for "network".
        seed: of the order of samples and of what is mixed; the same seed gives the same result.
        progress: whether to show a progress bar.
        keep_on_interrupt: whether Ctrl-C ends training with what there is (for the block in training the better of its first
            and its last state) instead of raising KeyboardInterrupt.
        resume: a file that keeps the state of training (`qi.keras.checkpoint`): stopped or killed, the same call goes on there,
            and ends with the same result.
        begin: values of weights and offsets to begin with, where these aren't those of the graph.
        control: allows ``learning_rate=0``, with which nothing learns.

    Returns:
        new weights, offsets and quantizers; no block is worse on these samples than it was.

    Raises:
        ConfigError: an unknown scope or rounding; steps, a rate, a share or a batch size out of range; unknown keys; a file to
            resume from that is of other work.
        FileFormatError: such a file that is damaged or something else.
        InputError: no samples, or illegal ones; a layer that can't be copied; a loss that isn't finite, with the block's name.
        KeyboardInterrupt: Ctrl-C, unless `keep_on_interrupt`.
    """
    _check(scope, rounding, steps, learning_rate, drop, control)
    _check_keys(ready, weights, activations)
    check_copied(ready.graph, ready.notes)
    bits = min((q.num_bits for q in weights.values()), default=8)
    demanded = fixed_batch([value.shape for value in ready.graph.flat_inputs()])
    inputs = _samples(ready.graph, data, check_batch_size(batch_size))
    count = len(inputs[0])
    settings = _Settings(
        rounding,
        _steps(bits, scope, rounding) if steps is None else steps,
        _rate(bits, rounding) if learning_rate is None else float(learning_rate),
        demanded or min(batch_size, count),
        drop,
        seed,
        keep_on_interrupt,
    )
    if count < settings.batch:
        raise InputError(f"expected whole batches of {settings.batch} samples; received {count} samples")
    room = _KEPT_ELEMENTS // count
    student = Student(ready, weights, activations, rounding=rounding, scope=scope, room=room, begin=begin)
    count = _within_memory(student, count, settings.batch if demanded else 1)
    inputs = [array[:count] for array in inputs]
    kept = Checkpoint(resume, "" if resume is None else _fingerprint(student, inputs, settings))
    losses = _train_all(student, inputs, settings, kept, progress)
    return Reconstructed(student.weights(), student.floats(), student.activations(), losses, dict(student.fixed), count)


# Checks -----------------------------------------------------------------------------------------------------------------


def _check(scope: str, rounding: str, steps: int | None, rate: float | None, drop: float, control: bool) -> None:
    for name, value, known in (("scope", scope, SCOPES), ("rounding", rounding, ROUNDINGS)):
        if value not in known:
            raise ConfigError(f"expected {name} to be one of {known}; received {value!r}." + suggest(str(value), known))
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1):
        raise ConfigError(f"expected steps to be an integer from 1; received steps={steps!r}")
    if rate is not None and not (_is_number(rate) and (0 < rate < np.inf or (control and rate == 0))):
        raise ConfigError(f"expected learning_rate to be a positive number; received learning_rate={rate!r}")
    if not (_is_number(drop) and 0 <= drop <= 1):
        raise ConfigError(f"expected drop to be a share from 0 to 1; received drop={drop!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _check_keys(ready: Prepared, weights: Mapping[Weight, Any], activations: Mapping[int, Any]) -> None:
    known = {(key, path) for key, calls in ready.graph.calls_of().items() for path in paths(calls[0].op)}
    if strange := set(weights) - known:
        raise ConfigError(
            f"expected weights of layers of the prepared graph; received {sorted(strange)[:3]}, which aren't"
        )
    if set(activations) - {id(group) for group in ready.plan.groups}:
        raise ConfigError("expected quantizers of groups of the plan; received some of others")


def _steps(bits: int, scope: str, rounding: str) -> int:
    """Fewer where less has to be learned, and more where scales and weights stay."""
    whole = 1000 if bits <= 2 or rounding == "adaround" else 600 if bits == 3 else 300
    return whole if scope == "network" else whole // 4


def _rate(bits: int, rounding: str) -> float:
    if rounding == "adaround":
        return 1e-2
    return 1e-3 if bits <= 2 else 5e-4 if bits == 3 else 2e-4


# Samples ----------------------------------------------------------------------------------------------------------------


def _samples(graph: Graph, data: Any, batch_size: int) -> list[np.ndarray]:
    """The inputs of all samples, as far as memory allows."""
    kept: list[list[np.ndarray]] = []
    elements = 0
    for flat, _ in batches(data, graph, batch_size, "data to reconstruct with"):
        kept.append([np.array(array) for array in flat])
        elements += sum(array.size for array in flat)
        if elements > _KEPT_ELEMENTS // 2:
            break
    return [np.concatenate(several) for several in zip(*kept, strict=True)]


def _within_memory(student: Student, count: int, multiple: int) -> int:
    """How many samples' values fit into memory where a block is trained, in whole batches of a size that is demanded."""
    copies = 1 if student.scope == "network" else 2  # float and quantized
    most = max(copies * (elements(block.inputs) + elements(block.outputs)) for block in student.blocks)
    fitting = min(count, max(multiple, _KEPT_ELEMENTS // max(1, most)))
    return fitting - fitting % multiple


# Training ---------------------------------------------------------------------------------------------------------------


def _fingerprint(student: Student, inputs: list[np.ndarray], settings: _Settings) -> str:
    """Tells this training from any other."""
    digest = hashlib.sha256(repr((replace(settings, keep=False), student.describe())).encode())
    for array in [*student.arrays(), *inputs]:
        digest.update(repr((array.dtype.name, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _train_all(
    student: Student, inputs: list[np.ndarray], settings: _Settings, kept: Checkpoint, progress: bool
) -> dict[str, tuple[float, float]]:
    """Trains block after block; gives the loss of each before and after."""
    given = dict(zip(map(id, student.graph.flat_inputs()), inputs, strict=True))
    float_ones = dict(zip(map(id, student.teacher.flat_inputs()), inputs, strict=True))
    losses: dict[str, tuple[float, float]] = {}
    bar = keras.utils.Progbar(settings.steps * len(student.blocks), unit_name="step", verbose=int(progress))
    done, stopped = 0, False
    for place, block in enumerate(student.blocks):
        twin = student.twin(block)
        taught = [float_ones[id(value)] for value in twin.inputs]
        targets = _run(twin.build(), taught, settings)
        seen = [given[id(value)] for value in block.inputs]
        mixed_with = [float_ones[id(student.twins[id(value)])] for value in block.inputs]
        job = _Job(
            student, block, seen, mixed_with if student.scope != "network" else seen, targets, settings, place, kept
        )
        losses[block.name], stopped = job.train(bar, done, stopped)
        done += settings.steps
        if block is student.blocks[-1]:
            break
        needed = {id(value) for later in student.blocks[place + 1 :] for value in later.inputs}
        float_ones |= dict(zip(map(id, twin.outputs), targets, strict=True))
        given |= dict(zip(map(id, block.outputs), _run(job.net, seen, settings), strict=True))
        given = {key: array for key, array in given.items() if key in needed}
        twins = {id(student.twins[key]) for key in needed}
        float_ones = {key: array for key, array in float_ones.items() if key in twins}
    bar.update(done, finalize=True)
    return losses


def _run(net: keras.Model, inputs: Sequence[np.ndarray], settings: _Settings) -> list[np.ndarray]:
    """The outputs of a model of lists for all samples."""
    size = settings.batch if net.inputs[0].shape[0] is not None else _FORWARD
    parts = [stateless_call(net, [a[at : at + size] for a in inputs]) for at in range(0, len(inputs[0]), size)]
    return [np.concatenate(several) for several in zip(*parts, strict=True)]


class _Learner(keras.Model):
    """A block as it trains: run as at inference, with a loss of its own."""

    def __init__(self, net: keras.Model, job: _Job) -> None:
        super().__init__(name=f"{net.name}_learner")
        self.net, self._job = net, job
        self.strength = self.add_weight(shape=(), initializer="zeros", trainable=False, name="strength")
        self.beta = self.add_weight(shape=(), initializer="ones", trainable=False, name="beta")
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The block's outputs."""
        return self.net(inputs, training=False)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: Any = True
    ) -> Any:
        """How far the outputs are from the targets, and roundings from decisions."""
        loss = self._job.loss(y, y_pred)
        shares = self._job.student.rounded_up(self._job.block)
        if shares:
            undecided = sum(keras.ops.sum(1 - keras.ops.abs(2 * h - 1) ** self.beta) for h in shares)
            loss = loss + self.strength * undecided / sum(int(np.prod(h.shape)) for h in shares)
        return loss


class _Job:
    """One block, with what it is given and has to give."""

    def __init__(
        self,
        student: Student,
        block: Block,
        inputs: list[np.ndarray],
        float_inputs: list[np.ndarray],
        targets: list[np.ndarray],
        settings: _Settings,
        place: int,
        kept: Checkpoint,
    ) -> None:
        self.student, self.block, self.settings, self.place, self.kept = student, block, settings, place, kept
        self.inputs, self.float_inputs, self.targets = inputs, float_inputs, targets
        self.net = block.build()
        self.terms = [_Term.of(student, block, place, array) for place, array in enumerate(targets)]

    def loss(self, wanted: Sequence[Any], found: Sequence[Any]) -> Any:
        """The sum of all outputs' losses, a mean over samples."""
        several = zip(self.terms, keras.tree.flatten(wanted), keras.tree.flatten(found), strict=True)
        return sum((term(w, f) for term, w, f in several), start=keras.ops.zeros(()))

    def measure(self) -> float:
        """The loss on all samples, as quantized for good."""
        size = self.settings.batch if self.net.inputs[0].shape[0] is not None else _FORWARD
        total = 0.0
        for at in range(0, len(self.inputs[0]), size):
            part = slice(at, at + size)
            found = stateless_call(self.net, [a[part] for a in self.inputs])
            loss = self.loss([t[part] for t in self.targets], found)
            total += float(to_numpy(loss)) * len(found[0])
        return self._finite(total / len(self.inputs[0]))

    def _finite(self, loss: float) -> float:
        if not np.isfinite(loss):
            raise InputError(
                f"expected a finite loss; received {loss} in block {self.block.name!r}; do lower the learning rate, or look at "
                "the range of data and weights"
            )
        return loss

    def train(self, bar: Any, done: int, stopped: bool) -> tuple[tuple[float, float], bool]:
        """((loss before, loss after), whether the user stopped it); the better state stays."""
        learner = _Learner(self.net, self)
        variables = learner.trainable_variables
        if (known := self.kept.finished(self.place, variables)) is not None:
            return known, stopped
        before = self.measure()
        if stopped or not self.settings.rate or not variables:
            if not stopped:  # what was given up isn't done
                self.kept.finish(self.place, (before, before), variables, self._is_last())
            return (before, before), stopped
        state = [(variable, to_numpy(variable).copy()) for variable in variables]
        try:
            with self.student.soft(self.block):
                self._steps(learner, bar, done, before)
        except KeyboardInterrupt:
            if not self.settings.keep:
                self.kept.write()
                raise
            stopped = True
        after = self.measure()
        if after >= before:
            for variable, value in state:
                variable.assign(value)
        losses = before, min(before, after)
        if not stopped:
            self.kept.finish(self.place, losses, variables, self._is_last())
        return losses, stopped

    def _is_last(self) -> bool:
        return self.block is self.student.blocks[-1]

    def _steps(self, learner: _Learner, bar: Any, done: int, before: float) -> None:
        how, decay = self.settings, keras.optimizers.schedules.CosineDecay
        learner.compile(keras.optimizers.Adam(decay(how.rate, how.steps)), jit_compile=_jit())
        # Made within the first step, the optimizer's variables would hold memory for good.
        learner.optimizer.build(learner.trainable_variables)
        start = self.kept.restore(self.place, learner)
        orders = _orders(len(self.inputs[0]), how.batch, np.random.default_rng([how.seed, self.place]))
        for step, chosen in islice(zip(range(how.steps), orders, strict=False), start, None):
            if how.rounding == "adaround":
                self._regularize(learner, step / how.steps, before)
            # Numbers of its own for each step: what goes on at one needs those of none before.
            mixed = self._mixed(chosen, np.random.default_rng([how.seed, self.place, step]))
            loss = learner.train_on_batch(mixed, [array[chosen] for array in self.targets])
            bar.update(done + step + 1, [("loss", self._finite(float(loss)))], finalize=False)
            self.kept.step(self.place, step + 1, learner)

    def _regularize(self, learner: _Learner, share: float, before: float) -> None:
        """Has roundings decide: hardly at first, then more and more."""
        start, end = _REGULARIZED
        passed = float(np.clip((share - start) / (end - start), 0, 1))
        learner.strength.assign(_STRENGTH * before if share >= start else 0.0)
        learner.beta.assign(_BETA[1] + (_BETA[0] - _BETA[1]) * 0.5 * (1 + np.cos(passed * np.pi)))

    def _mixed(self, chosen: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """A batch of the block's inputs, some elements of which are float values."""
        found = []
        for given, float_one in zip(self.inputs, self.float_inputs, strict=True):
            array = given[chosen]
            if float_one is not given and self.settings.drop and array.dtype.kind == "f":
                array = np.where(
                    rng.random(array.shape, dtype=np.float32) < self.settings.drop, float_one[chosen], array
                )
            found.append(array)
        return found


def _jit() -> Any:
    """Compiled by XLA where Keras' backend needs it to be fast."""
    return "auto" if keras.backend.backend() == "jax" else False


def _orders(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of places, in another order each time that all were taken; a part that is left over waits for the next time."""
    while True:
        order = rng.permutation(count)
        yield from (order[at : at + size] for at in range(0, count - size + 1, size))


@dataclass(frozen=True)
class _Term:
    """The loss of one output: the Kullback-Leibler divergence, or the squared error over `scale`."""

    kind: str
    scale: float = 1.0
    weight: float = 1.0

    @classmethod
    def of(cls, student: Student, block: Block, place: int, target: np.ndarray) -> _Term:
        """That of an output of a block."""
        value = block.outputs[place]
        if not value.is_float:
            return cls("none")
        if student.is_softmax(value):
            return cls("divergence")
        variance = float(np.var(target, dtype=np.float64)) or 1.0
        return cls("error", variance, student.weight_of(value))

    def __call__(self, wanted: Any, found: Any) -> Any:
        ops = keras.ops
        if self.kind == "none":
            return ops.zeros(())
        wanted, found = (ops.cast(ops.convert_to_tensor(a), "float32") for a in (wanted, found))
        if self.kind == "error":
            return ops.mean(ops.square(found - wanted)) * (self.weight / self.scale)
        wanted, found = (ops.clip(a, 1e-7, 1.0) for a in (wanted, found))
        return ops.mean(ops.sum(wanted * (ops.log(wanted) - ops.log(found)), axis=-1))
