"""The page that `tests.benchmarks.low_bits_peers` writes: tables, what they say, and the texts of errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

Result = dict[str, Any]
NOT_MEASURED, STOPPED = "not measured", "stopped"
GRADIENT_EPOCHS = 5
_SHORT, _LONG = 60, 400
_SIGMAS = 2
_EVERYDAY = "effort balanced"


@dataclass(frozen=True)
class Row:
    """A method of a peer.

    Attributes:
        peer: Its short name.
        label: The method's.
        activations: What they are quantized to.
        options: The script's.
        bits: Of the weights, where it makes sense.
    """

    peer: str
    label: str
    activations: str
    options: Mapping[str, Any]
    bits: tuple[int, ...] = (8, 4, 3, 2)
    key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", json.dumps([self.peer, self.label]))

    def __hash__(self) -> int:
        return hash(self.key)


Results = Mapping[tuple[str, Row, int], Result]


class Notes:
    """Texts with numbers."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> str:
        """The number of a text."""
        line = _shortened(" ".join(text.split()))
        if line not in self.texts:
            self.texts.append(line)
        return f"[{self.texts.index(line) + 1}]"


def _shortened(text: str) -> str:
    """Without what stands in nested parentheses, where a text is too long."""
    while len(text) > _LONG and (inner := re.sub(r"\([^()…]*(?:\(…\)[^()…]*)*\)", "(…)", text)) != text:
        text = inner
    return text if len(text) <= _LONG else f"{text[:_LONG]} …"


def page(
    results: Results,
    floats: Mapping[str, float],
    titles: Mapping[str, str],
    rows: Sequence[Row],
    bits: Sequence[int],
    command: str,
    cap: float,
) -> str:
    """The page.

    Args:
        results: By model, row and bits.
        floats: The accuracy of every float model.
        titles: Of the peers, by their short names.
        rows: In their order.
        bits: The columns.
        command: Which makes the page.
        cap: Seconds that a cell may take.
    """
    notes = Notes()
    parts = [_head(command, cap, max([cap, *(one.get("cap", cap) for one in results.values())]))]
    for model, top1 in floats.items():
        parts.append(f"## {model} (float: {top1:.2f} %)\n\n" + _table(results, model, titles, rows, bits, notes))
        told = [_verdict(results, model, titles, rows, one) for one in bits]
        parts.append("\n".join(f"- {line}" for line in told))
    parts.append("## Notes\n\n" + "\n".join(f"{at}. {text}" for at, text in enumerate(notes.texts, 1)))
    return "\n\n".join(parts) + "\n"


def _head(command: str, cap: float, most: float) -> str:
    longer = f", and up to {most:.0f} where the machine was busy" if most > cap else ""
    return f"""# Low bits without training, beside others

Top-1 accuracy in percent after post-training quantization, and the seconds of processor time that it took (calibration and
quantization, all threads added up; no imports, no measurement of accuracy). Made on {datetime.now(UTC):%Y-%m-%d} by
`{command}` with {os.cpu_count()} processors; a cell may take {cap:.0f} seconds
on the clock{longer}.

All get the same float models, the same 1,024 calibration images and the same 5,000 test images of CIFAR-10. Setting: weights
of so many bits per output channel, the first and the last layer's of 8 bits, activations of 8 bits. What deviates is said: "~"
marks results in which more kernels than those two kept more bits or stayed in float, and the column "activations" says what
became of these ("dynamic": their ranges are found anew for every input, which is easier than fixed ones, and counts as within
the setting). Bold is the best of the rows that keep to the setting. Numbers in brackets are notes, at the end.

How to read the lines below a table: plus/minus is one standard error of the difference on the same images, and differences
below two of these are called even. Both sides' best rows are picked by these test images, the peers' of more rows than QI's,
so that each best is a little flattered. Other work shared the machine; that moves processor time less than seconds on the
clock, which is why a cell that reached the limit of seconds is told with the processor time that it had until then. MCT's
gradient method is given {GRADIENT_EPOCHS} epochs; more may serve it better."""


def _table(
    results: Results, model: str, titles: Mapping[str, str], rows: Sequence[Row], bits: Sequence[int], notes: Notes
) -> str:
    best = {one: max((_top1(results, model, row, one) for row in rows), default=-1.0) for one in bits}
    lines = [
        "| method | activations | " + " | ".join(f"w{one}" for one in bits) + " |",
        "| --- " * (len(bits) + 2) + "|",
    ]
    for row in rows:
        cells = []
        for one in bits:
            result = results.get((model, row, one))
            cells.append("" if result is None else _cell(result, best[one] == _top1(results, model, row, one), notes))
        lines.append(f"| {titles[row.peer]}: {row.label} | {row.activations} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(result: Result, best: bool, notes: Notes) -> str:
    if "error" in result:
        text = " ".join(result["error"].split()).replace("|", "\\|")
        return text if len(text) <= _SHORT else f"refused {notes(result['error'])}"
    told = f"{result['top1']:.2f}"
    told = f"**{told}**" if best else told
    marks = "".join(f" {notes(one)}" for one in result["remarks"])
    return ("~ " if result["partial"] else "") + f"{told} ({_seconds(result)}){marks}"


def _seconds(result: Result) -> str:
    seconds = result["processor"]
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def _fits(row: Row, result: Result | None) -> bool:
    """Whether a result keeps to the setting, and can so be compared; outputs that are not numbers are none."""
    if result is None or "top1" not in result or row.activations == "float":
        return False
    return not result["partial"] and not any("not finite" in one for one in result["remarks"])


def _top1(results: Results, model: str, row: Row, bits: int) -> float:
    """The accuracy; -1 where there is none that keeps to the setting."""
    result = results.get((model, row, bits))
    return float(result["top1"]) if result is not None and _fits(row, result) else -1.0


def _verdict(results: Results, model: str, titles: Mapping[str, str], rows: Sequence[Row], bits: int) -> str:
    """What the numbers say of one width: who is ahead, and by how much."""
    order = sorted(rows, key=lambda row: -_top1(results, model, row, bits))
    ours = [row for row in order if row.peer == "ours" and _top1(results, model, row, bits) >= 0]
    theirs = [row for row in order if row.peer != "ours" and _top1(results, model, row, bits) >= 0]
    if not ours:
        return f"w{bits}: no result of QI."
    mine = ours[0]
    result = results[model, mine, bits]
    told = f"w{bits}: QI's best is {result['top1']:.2f} ({mine.label}, {_seconds(result)}). "
    if theirs:
        told += _compared(result, results[model, theirs[0], bits], _named(results, model, titles, theirs[0], bits))
    else:
        told += "No peer keeps to the setting."
    everyday = next((row for row in ours[1:] if row.label == _EVERYDAY), None)
    if everyday and theirs and results[model, everyday, bits]["hits"] != result["hits"]:
        told += _above_everyday(results, model, titles, everyday, theirs, bits)
    loose = [row for row in rows if row.peer != "ours" and _ahead(results.get((model, row, bits)), result, row)]
    if loose:
        names = ", ".join(f"{titles[row.peer]} ({row.label}) {results[model, row, bits]['top1']:.2f}" for row in loose)
        told += f" Higher, but not in this setting: {names}."
    for reason, what in ((NOT_MEASURED, "Not measured yet"), (STOPPED, "Stopped at the limit")):
        told += _without(results, model, titles, rows, bits, reason, what)
    return told


def _without(
    results: Results, model: str, titles: Mapping[str, str], rows: Sequence[Row], bits: int, reason: str, what: str
) -> str:
    """Which rows have no result for that reason, if any."""
    found = [row for row in rows if results.get((model, row, bits), {}).get("error", "").startswith(reason)]
    return f" {what}: {', '.join(f'{titles[row.peer]} ({row.label})' for row in found)}." if found else ""


def _named(results: Results, model: str, titles: Mapping[str, str], row: Row, bits: int) -> str:
    result = results[model, row, bits]
    return f"{titles[row.peer]} ({row.label}, {result['top1']:.2f}, {_seconds(result)})"


def _above_everyday(
    results: Results, model: str, titles: Mapping[str, str], mine: Row, theirs: Sequence[Row], bits: int
) -> str:
    """Which peers are ahead of QI's balanced effort where that is not its best: users compare with that as well."""
    result = results[model, mine, bits]
    name = f"{mine.label} ({result['top1']:.2f}, {_seconds(result)})"
    ahead = []
    for row in theirs:
        difference, error = paired(results[model, row, bits]["hits"], result["hits"])
        if difference > _SIGMAS * error:
            ahead.append(f"{_named(results, model, titles, row, bits)} by {difference:.2f} ± {error:.2f}")
    return f" **Ahead of {name}**: {', '.join(ahead)}." if ahead else f" No peer is ahead of {name}."


def _ahead(result: Result | None, than: Result, row: Row) -> bool:
    return result is not None and "top1" in result and not _fits(row, result) and result["top1"] > than["top1"]


def _compared(mine: Result, other: Result, name: str) -> str:
    difference, error = paired(mine["hits"], other["hits"])
    by = f"{abs(difference):.2f} ± {error:.2f} points"
    if abs(difference) < _SIGMAS * error or not difference:
        side = "ahead" if difference >= 0 else "behind"
        return f"Even with the best peer, {name}: {side} by {by}."
    if difference < 0:
        return f"**The peer wins**: {name} is ahead by {by}."
    return f"Ahead of the best peer, {name}, by {by}."


def paired(mine: str, other: str) -> tuple[float, float]:
    """Points by which one is ahead of the other on the same images, and the standard error of that.

    Args:
        mine: Which images are right, as bits, in hexadecimal.
        other: The same.
    """
    first, second = (np.unpackbits(np.frombuffer(bytes.fromhex(one), np.uint8)).astype(float) for one in (mine, other))
    apart = first - second
    return 100 * float(apart.mean()), 100 * float(apart.std() / np.sqrt(len(apart)))
