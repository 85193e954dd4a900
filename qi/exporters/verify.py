"""verify: does a deployed file still give what the twin of a quantized model gives?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError
from qi.exporters.deploy import written
from qi.exporters.formats import Format, format_of, path_of
from qi.exporters.fronts import front_of
from qi.exporters.isolated import run_isolated
from qi.exporters.manifest import Options, options_of
from qi.exporters.proof import Proof, made_samples, prove
from qi.exporters.report import rows_of
from qi.files import read_limited
from qi.ir import QGraph
from qi.ir.routing import route
from qi.ledger.table import table
from qi.typing import Json

__all__ = ["Verification", "verify"]

_MOST = 2**31
_MOST_THREADS = 256


@dataclass(frozen=True)
class Verification:
    """What running a file beside a model's twin showed.

    Attributes:
        path: of the file.
        target: the runtime.
        proof: the file beside the twin.
        identical: whether the file is, byte for byte, what this version of `qi.export` writes of the model.
        options: that it was written with.
    """

    path: str
    target: str
    proof: Proof
    identical: bool
    options: Options

    @property
    def exact(self) -> bool:
        """Whether the runtime gave what the twin gives, bit for bit."""
        return self.proof.exact

    @property
    def equal(self) -> bool:
        """The same, where outputs that are real numbers may differ by float rounding (`qi.exporters.proof.Proof.equal`)."""
        return self.proof.equal

    def to_dict(self) -> Json:
        """A record of plain JSON values."""
        return {
            "path": self.path,
            "target": self.target,
            **self.proof.to_dict(),
            "identical_bytes": self.identical,
            "integer_io": self.options.integer_io,
            **self.options.arithmetic,
        }

    def __str__(self) -> str:
        same = (
            "those that an export of the model gives"
            if self.identical
            else "others than an export of the model gives now"
        )
        body = table(("", ""), [*rows_of(self.proof), ("bytes", same)], left=2)
        lines = [f"  {line}" for line in body.splitlines() if line.strip()]
        return "\n".join([f"Verified: {self.path} on {self.target}", "", *lines])


def verify(
    path: str | os.PathLike[str],
    qmodel: Any,
    samples: Any = None,
    *,
    threads: int = 1,
    format: str | None = None,
    integer_only: bool | None = None,
    packed: bool | None = None,
    dynamic: bool | None = None,
) -> Verification:
    """Runs a file in its runtime, and the twin of a model beside it, on the same samples.

    Args:
        path: a ".tflite" or ".onnx" file; its manifest says how `qi.export` wrote it. Another tool's may call its only output
            otherwise than the model does.
        qmodel: the quantized model that it should agree with.
        samples: as ``predict`` takes them; by default 64 seeded ones, uniform over the calibrated range.
        threads: of the runtime.
        format: "litert" or "onnx", where the path doesn't tell.
        integer_only: as of `qi.export`; by default as the file's manifest says. Without a manifest, all that isn't given is
            tried, the likeliest first.
        packed: likewise.
        dynamic: likewise.

    Returns:
        what it showed: ``exact`` and ``equal``, the differences, the first tensor that differs; ``print`` shows it.

    Raises:
        ConfigError: an unknown format, or an impossible number of threads.
        FileFormatError: a damaged file, or one that doesn't take what the model takes and give what it gives.
        InputError: samples that don't fit the model.
        UnsupportedError: a float model, one that still trains, or one that the file's target can't carry.
        MissingDependencyError: the runtime's package isn't installed.
        OSError: the file can't be read.

    Example:
        >>> import keras, numpy as np, os, qi, tempfile
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qmodel, _ = qi.quantize_model(model, "w8a8", x, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = qi.export(qmodel, os.path.join(folder, "model.onnx"), latency=False)
        ...     found = qi.verify(os.path.join(folder, "model.onnx"), qmodel, x)
        >>> found.exact, found.identical
        (True, True)
    """
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(f"expected threads from 1 to {_MOST_THREADS}; received threads={threads!r}")
    kind = format_of(path_of(path), format)
    data = read_limited(path, _MOST)
    text, takes_codes = kind.read(data)
    front = front_of(qmodel, samples)
    graph = front.lower()
    arrays = None if samples is None else front.inputs(samples)
    try:
        asked = {"integer_only": integer_only, "packed": packed, "dynamic": dynamic}
        known = {name: value for name, value in asked.items() if value is not None}
        written_with = [options_of(text)] if text else _likely(takes_codes)
        candidates = _candidates(graph, kind, [replace(options, **known) for options in written_with])
        own = [entry[:2] for entry in candidates if entry[2] == data]
        # What isn't of our own writing may be anything.
        runs = kind if own else replace(kind, run=partial(run_isolated, kind.name))
        found: list[Verification] = []
        likely = [entry[:2] for entry in candidates if text or entry[0].integer_io is takes_codes]
        for options, routed in own or likely:
            given = made_samples(routed) if arrays is None else arrays
            source = "seeded, over the calibrated range" if arrays is None else "given"
            proof = prove(data, routed, runs, given, source=source, options=options, threads=threads)
            found.append(Verification(os.fspath(path), kind.target, proof, bool(own), options))
            if proof.exact:
                return found[-1]
    except (ConfigError, InputError) as error:  # the samples fit the model: so it is the file that doesn't
        raise FileFormatError(f"{error}; {os.fspath(path)!r} is no file of model {graph.name!r}") from error
    equal = [verification for verification in found if verification.equal]
    return min(equal, key=lambda verification: verification.proof.max_lsb) if equal else found[0]


def _likely(takes_codes: bool) -> list[Options]:
    """The options that a file without a manifest can have been written with, the likeliest first.

    Whether it takes codes isn't quite known: images are bytes as well, and what looks up rows gives codes but takes none.
    """
    both = (False, True)
    codes = (takes_codes, not takes_codes)
    return [Options(io, *rest, None, not plain) for io in codes for plain in both for rest in product(both, both)]


def _candidates(graph: QGraph, kind: Format, likely: Sequence[Options]) -> list[tuple[Options, QGraph, bytes]]:
    """Options with the graphs that they lead to, each graph once, and the files of these.

    Raises:
        UnsupportedError: no file can be written of any.
    """
    found: dict[tuple[str, bool, bool], tuple[Options, QGraph, bytes]] = {}
    refusals = []
    for options in likely:
        routed = route(graph, kind.target, **options.arithmetic)
        # ONNX files of packed weights have operations of their own.
        key = str(routed), options.packed and kind.name == "onnx", options.integer_io
        if key in found:
            continue
        try:
            found[key] = options, routed, written(routed, kind, options)
        except UnsupportedError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return list(found.values())
