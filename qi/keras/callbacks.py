"""Callbacks for training with quantizers: start late, freeze ranges and batch normalizations, step the bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError
from qi.keras.sites import QuantizerSite, quantizer_sites
from qi.quantizers.base import flag
from qi.registry import suggest

__all__ = [
    "BitWidthSchedule",
    "FreezeBatchNorm",
    "FreezeRanges",
    "StartQuantization",
]


class _EpochCallback(keras.callbacks.Callback):
    """Changes something at the begin of epochs and has the compiled functions made anew where that changed anything."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = _epoch(epoch)
        self._targets: Sequence[Any] = ()

    def find(self) -> Sequence[Any]:
        """What is changed, of the model; raises where there is nothing."""
        raise TypeError(f"{type(self).__name__} defines no find")

    def switch(self, target: Any, on: bool) -> bool:
        """Changes one of them to its state from the epoch on, or back; says whether that changed anything."""
        raise TypeError(f"{type(self).__name__} defines no switch")

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks the model.

        Raises:
            ConfigError: there is nothing in it to change.
        """
        self._targets = self.find()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Changes what is due."""
        self._switch(epoch >= self.epoch)

    def _switch(self, on: bool) -> None:
        changed = [self.switch(target, on) for target in self._targets]
        if any(changed):
            rebuild_functions(self.model)


class _SiteCallback(_EpochCallback):
    """One that changes quantizers."""

    def __init__(self, epoch: int, weights: bool, activations: bool) -> None:
        super().__init__(epoch)
        self.weights, self.activations = flag("weights", weights), flag("activations", activations)
        if not (weights or activations):
            raise ConfigError("expected weights or activations; received weights=False, activations=False")

    def find(self) -> Sequence[QuantizerSite]:
        """The model's quantizers of that kind."""
        return quantizer_sites(self.model, weights=self.weights, activations=self.activations)


class StartQuantization(_SiteCallback):
    """Trains in float first: until an epoch, trainable quantizers pass tensors through.

    They do so in training and in validation, so metrics before that epoch are those of the float model; their variables keep
    their values. When `fit` is over, they quantize in any case: what is evaluated, saved or converted then is the quantized
    model. `fit` with ``initial_epoch`` goes on where another one ended; give it the callback again.

    Args:
        epoch: the first one that is quantized, counted from 0.
        weights: whether this is about quantizers of weights.
        activations: whether this is about quantizers of activations.

    Raises:
        ConfigError: a negative epoch, or neither weights nor activations; in `fit`: a model without trainable quantizers.

    Example:
        >>> StartQuantization(3, weights=False).epoch  # weights from the start, activations from the fourth epoch
        3
    """

    def __init__(self, epoch: int, weights: bool = True, activations: bool = True) -> None:
        super().__init__(epoch, weights, activations)

    def switch(self, target: QuantizerSite, on: bool) -> bool:
        """Lets a quantizer quantize, or not."""
        return target.bound.configure(enabled=on)

    def on_train_end(self, logs: Any = None) -> None:
        """Lets all of them quantize."""
        self._switch(True)


class FreezeRanges(_SiteCallback):
    """From an epoch on, the quantizers' own variables (steps, thresholds, offsets) stay as they are; weights train on.

    Neither momentum nor weight decay moves them. They stay in the optimizer, whose state of all other variables goes on as it
    was. When `fit` is over they are let go again: give the callback to the next one too. (An optimizer with ``use_ema=True``
    puts averages over all steps in the place of all variables when `fit` ends, of these as well.)

    Args:
        epoch: the first one with fixed ranges, counted from 0.
        weights: whether this is about quantizers of weights.
        activations: whether this is about quantizers of activations.

    Raises:
        ConfigError: a negative epoch, or neither weights nor activations; in `fit`: a model without trainable quantizers.

    Example:
        >>> FreezeRanges(4).epoch
        4
    """

    def __init__(self, epoch: int, weights: bool = True, activations: bool = True) -> None:
        super().__init__(epoch, weights, activations)

    def switch(self, target: QuantizerSite, on: bool) -> bool:
        """Keeps a quantizer's variables, or lets go of them."""
        return target.bound.configure(fixed=on)

    def on_train_end(self, logs: Any = None) -> None:
        """Lets them train again."""
        self._switch(False)


class FreezeBatchNorm(_EpochCallback):
    """From an epoch on, batch normalizations use their moving statistics, as at inference, and don't update them.

    Their gamma and beta train on, like weights. It is for models of ``qi.prepare_qat(..., batch_norm="trained")``, and for
    any other model with batch normalizations. When `fit` is over they are let go again.

    Args:
        epoch: the first one with fixed statistics, counted from 0.

    Raises:
        ConfigError: a negative epoch; in `fit`: a model without batch normalizations.

    Example:
        >>> FreezeBatchNorm(2).epoch
        2
    """

    def find(self) -> Sequence[keras.layers.Layer]:
        """The model's batch normalizations."""
        norms = [n for n in self.model._flatten_layers() if isinstance(n, keras.layers.BatchNormalization)]
        if not norms:
            raise ConfigError(
                f"expected a model with batch normalizations; received {self.model.name!r}, which has none; "
                "do prepare it with batch_norm='trained', which doesn't fold them"
            )
        return norms

    def switch(self, target: keras.layers.Layer, on: bool) -> bool:
        """Puts another call in front of a layer's own, or takes it away.

        ``trainable = False`` would do, too, but also stop gamma and beta, and stay behind in saved models.
        """
        was = isinstance(vars(target).get("call"), _AtInference)
        if on and not was:
            target.call = _AtInference(target.call)
        elif was and not on:
            del target.call
        return was != on

    def on_train_end(self, logs: Any = None) -> None:
        """Lets them update again."""
        self._switch(False)


@dataclass(frozen=True, eq=False)
class _AtInference:
    """A layer's call, as outside of training."""

    own: Callable[..., Any]

    def __call__(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        return self.own(inputs, training=False, **kwargs)


class BitWidthSchedule(_SiteCallback):
    """Changes the bits of trainable quantizers in the middle of training, keeping the ranges that they cover.

    Every quantizer starts anew on the range that it had learned. The bits are the model's from then on: they stay when `fit`
    is over, `qi.convert` gives them, and saved models hold them. (A class of your own that makes quantizers in its constructor
    makes them with its own bits when a file is loaded: have it take them as an argument.)

    Args:
        bits: by the epoch from which on they hold, counted from 0: ``{2: 6, 4: 4}``. Before the first one, bits are left as
            they are.
        weights: whether quantizers of weights change.
        activations: whether quantizers of activations change.
        layers: names of the layers whose quantizers change, wildcards allowed ("conv*"), or a function of the name that says
            so; None for all, the first and the last one included.

    Raises:
        ConfigError: an empty schedule, a negative epoch, bits that aren't from 1 to 16, neither weights nor activations; in
            `fit`: a model without trainable quantizers, layers that it doesn't have, bits that a quantizer can't have.

    Example:
        >>> BitWidthSchedule({0: 8, 2: 4}, layers=["conv*", "dense"]).bits_at(3)
        4
    """

    def __init__(
        self,
        bits: Mapping[int, int],
        weights: bool = True,
        activations: bool = True,
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
    ) -> None:
        if not isinstance(bits, Mapping) or not bits:
            raise ConfigError(f"expected bits by epoch, such as {{2: 6, 4: 4}}; received bits={bits!r}")
        for value in bits.values():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= 16:
                raise ConfigError(f"expected bits from 1 to 16; received bits={dict(bits)!r}")
        super().__init__(min(map(_epoch, bits)), weights, activations)
        self.bits = {int(epoch): int(value) for epoch, value in sorted(bits.items())}
        self.layers = [layers] if isinstance(layers, str) else layers
        named = isinstance(self.layers, Sequence) and all(isinstance(name, str) for name in self.layers)
        if not (named or self.layers is None or callable(self.layers)):
            raise ConfigError(f"expected names of layers, or a function of a name; received layers={layers!r}")
        self._now: int | None = None

    def bits_at(self, epoch: int) -> int | None:
        """The bits in an epoch; None before the first change."""
        due = [value for start, value in self.bits.items() if start <= epoch]
        return due[-1] if due else None

    def find(self) -> Sequence[QuantizerSite]:
        """The model's quantizers of that kind in those layers, all of which can have all these bits."""
        sites = super().find()
        names = sorted({site.layer for site in sites})
        wanted = self.layers
        if wanted is not None and not callable(wanted):
            for pattern in wanted:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ConfigError(
                        f"expected names of layers with trainable quantizers; received {pattern!r}, which is none."
                        + suggest(pattern, names)
                    )
        found = [site for site in sites if self._covers(site.layer)]
        if not found:
            raise ConfigError(f"expected layers to choose some of {names}; received a function that chooses none")
        for site in found:
            for value in self.bits.values():
                site.bound.with_bits(value)
        self._now = None
        return found

    def _covers(self, name: str) -> bool:
        if self.layers is None:
            return True
        if callable(self.layers):
            return bool(self.layers(name))
        return any(fnmatchcase(name, pattern) for pattern in self.layers)

    def switch(self, target: QuantizerSite, on: bool) -> bool:
        """Gives a quantizer the bits of now."""
        if not on or self._now is None or target.bound.quantizer.num_bits == self._now:
            return False
        target.bound.replace(target.bound.with_bits(self._now))
        return True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Changes the bits where that is due; in between, another callback may."""
        due = self.bits_at(epoch)
        if due != self._now:
            self._now = due
            self._switch(True)


def rebuild_functions(model: keras.Model) -> None:
    """Has a compiled model trace its train, test and predict functions anew, since what they call has changed."""
    for kind in ("train", "test", "predict"):
        with _new_step(model, f"{kind}_step"):
            getattr(model, f"make_{kind}_function")(force=True)


@contextmanager
def _new_step(model: keras.Model, name: str) -> Iterator[None]:
    """On JAX, puts a new function in the place of a step: ``jax.jit`` finds old traces of equal ones, as bound methods are."""
    if keras.backend.backend() != "jax":
        yield
        return
    own = vars(model).get(name)
    step = getattr(model, name)
    setattr(model, name, lambda *args: step(*args))
    try:
        yield
    finally:
        delattr(model, name)
        if own is not None:
            setattr(model, name, own)


def _epoch(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ConfigError(f"expected an epoch, an integer from 0; received epoch={value!r}")
    return int(value)
