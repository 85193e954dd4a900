"""The README of an integer export: what each kind of operation computes, in words and formulas.

They say what the kernels of `qi.ir.reference` and the functions of `qi.ir.elementwise` do. A test follows them
step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qi.errors import UnsupportedError
from qi.ir.told import told
from qi.typing import Json

__all__ = ["BORDER", "FUNCTIONS", "INTEGERS", "REAL", "readme"]

_GENERAL = """\
## How to read the files

* In `graph.json`, `tensors` go by their names in C, with what the model calls them as `name`; one that is `constant`
  is an array of `arrays.npz`. `operations` stand in the order of their running; `layer` is the model's, and `domain`
  tells whether one works on codes (`integers`), on `real` numbers, or on the `border` between them.
* In `model.h`, macros are made of these names in capitals: `<TENSOR>_SIZE`, `_DIM<axis>`, `_BITS`, `_ZERO_POINT`, `_SCALE`;
  `<OPERATION>_<ATTRIBUTE>_<place in its list>`, `_CODE_MIN`, `_CODE_MAX`, and one for each number of `fixed_point`.

## Numbers

* A **code** is an integer that stands for a real number: `real = (code - zero_point) * scale`. Each tensor of
  `graph.json` with an entry `codes` holds codes, as int8 whatever its `bits`; `scale` is a float32. Weights may
  have an own scale for each index along `axis` (then `scales` names an array) and always have zero point 0 in
  convolutions and products.
* A bias is int32 at the scale of its sums, with zero point 0: it is added to the sum as it is.
* `shape` begins with the batch, written `null`; in `model.h`, `..._SIZE` counts one sample. Arrays are in C order,
  the last axis fastest: images are `[batch, height, width, channels]`.
* An operation's `code_range` is `[least, greatest]`; it contains the activation (ReLU, ReLU6) that was taken into
  the operation. `clip(v) = min(max(v, least), greatest)`. Operations without one only move codes.

## Fixed-point arithmetic

A real factor is kept as an int32 `multiplier` (Q31: 31 bits behind the point) and a `shift`:
`multiplier * 2^(shift - 31)`, with `0 <= multiplier < 2^31` and `-31 <= shift <= 30`; a positive shift is one to
the left. `floor` is towards minus infinity: `>>` on two's complement. Products of two 32-bit numbers take 64 bits.

* `TWICE(x, multiplier, shift)` rounds twice. With `left = max(shift, 0)` and `right = max(-shift, 0)`:
    1. `a = x * 2^left`, saturated to -2^31 ... 2^31 - 1
    2. `h = floor((a * multiplier + 2^30) / 2^31)`: half up
    3. `h / 2^right` to the nearest, half **away from zero**: `(h >> right) + (rest > threshold)` with `mask = 2^right - 1`,
       `rest = h & mask`, `threshold = (mask >> 1) + (h < 0 ? 1 : 0)`

  (gemmlowp's and CMSIS-NN's SaturatingRoundingDoublingHighMul and RoundingDivideByPOT.)
* `ONCE(x, multiplier, shift)` rounds once, half up: `(x * multiplier + 2^(30 - shift)) >> (31 - shift)`, in 64 bits.

In `graph.json`, the entry `fixed_point` of an operation holds these numbers; a text there names an array of
`arrays.npz` and `model.h`.

Below, `x` (or `a` and `b`) are the inputs' codes, `zx`, `za`, `zb`, `zy` the zero points of inputs and output.
"""

_WINDOW = """\
With `strides = [sh, sw]`, `dilation = [dh, dw]` and `pads = [top, bottom, left, right]`, output place `(i, j)`
sees at the window's place `(k, l)` the input at row `i*sh + k*dh - top`, column `j*sw + l*dw - left`. What lies
outside of the input counts as a real zero (`x = zx`), that is, it adds nothing."""

_SUMMED = "Then `y = clip(TWICE(sum, multiplier[o], shift[o]) + zy)`."

_POOL = """\
With `pool = [ph, pw]`, `strides = [sh, sw]` and `pads = [top, bottom, left, right]`, output place `(i, j)` sees
rows `i*sh - top` to `i*sh - top + ph - 1` and columns `j*sw - left` to `j*sw - left + pw - 1`; what lies outside
of the input is left out."""

_BROADCAST = """\
Shapes are aligned at their last axes; a missing axis or one of size 1 is repeated. One of the inputs may be a
constant."""

INTEGERS = {
    "conv2d": f"""\
Inputs: x `[batch, height, width, cin]`, weights `[kh, kw, cin / groups, cout]`, maybe a bias `[cout]`.
{_WINDOW}
Output channel `o` belongs to group `g = floor(o / (cout / groups))`:
`sum = bias[o] + sum over k, l, c of (x[.., .., g * (cin / groups) + c] - zx) * w[k, l, c, o]`, in 32 bits.
{_SUMMED}""",
    "depthwise_conv2d": f"""\
Inputs: x `[batch, height, width, cin]`, weights `[kh, kw, cout]`, maybe a bias `[cout]`; `cout = cin * m`, and
output channel `o` sees input channel `floor(o / m)`.
{_WINDOW}
`sum = bias[o] + sum over k, l of (x[.., .., floor(o / m)] - zx) * w[k, l, o]`, in 32 bits.
{_SUMMED}""",
    "conv2d_transpose": f"""\
Inputs: x `[batch, height, width, cin]`, weights `[kh, kw, cout, cin]`, maybe a bias `[cout]`.
All sums of the output begin with `bias[o]` (or 0). Each input place `(i, j)` then adds, for each `(k, l)`,
`sum over c of (x[i, j, c] - zx) * w[k, l, o, c]` to the sum at row `i*sh + k*dh - top`, column
`j*sw + l*dw - left`, where that lies within the output, whose shape `graph.json` tells. (`strides = [sh, sw]`,
`dilation = [dh, dw]`, `pads = [top, bottom, left, right]`.)
{_SUMMED}""",
    "dense": """\
Inputs: x `[..., n]`, weights `[n, cout]`, maybe a bias `[cout]`.
`sum = bias[o] + sum over c of (x[c] - zx) * w[c, o]`, in 32 bits.
Then `y = clip(ONCE(sum, multiplier[o], shift[o]) + zy)`: one rounding, unlike in convolutions.""",
    "add": f"""\
{_BROADCAST}
`p = TWICE((a - za) * 2^left_shift, input0_multiplier, input0_shift)`,
`q = TWICE((b - zb) * 2^left_shift, input1_multiplier, input1_shift)`,
`y = clip(TWICE(p + q, output_multiplier, output_shift) + zy)`.""",
    "sub": f"""\
{_BROADCAST}
As "add", with `p - q`: `p = TWICE((a - za) * 2^left_shift, input0_multiplier, input0_shift)`,
`q = TWICE((b - zb) * 2^left_shift, input1_multiplier, input1_shift)`,
`y = clip(TWICE(p - q, output_multiplier, output_shift) + zy)`.""",
    "mul": f"""\
{_BROADCAST}
`y = clip(TWICE((a - za) * (b - zb), multiplier, shift) + zy)`.""",
    "batch_matmul": """\
Matrix products of the last two axes; `transpose_a` and `transpose_b` say of each input whether these are exchanged
first; axes before them are broadcast.
`y[i, j] = clip(TWICE(sum over c of (a[i, c] - za) * (b[c, j] - zb), multiplier, shift) + zy)`.""",
    "maximum": f"{_BROADCAST}\nAll scales are the same: `y = max(a, b)` of the codes.",
    "minimum": f"{_BROADCAST}\nAll scales are the same: `y = min(a, b)` of the codes.",
    "avg_pool2d": f"""\
{_POOL}
The mean of the `n` codes that a window holds, half away from zero, in integer division that truncates:
`m = sum > 0 ? (sum + floor(n / 2)) / n : (sum - floor(n / 2)) / n`.
`y = clip(m)` where the operation has no `fixed_point` (input and output share their scale), else
`y = clip(TWICE(m - zx, multiplier, shift) + zy)`.""",
    "mean": """\
Over `axes`; they stay as sizes of 1 where `keepdims`. Their `count` is divided into the multiplier already:
`y = clip(TWICE(sum of (x - zx), multiplier, shift) + zy)`.""",
    "quantize": "From codes to codes of another scale: `y = clip(TWICE(x - zx, multiplier, shift) + zy)`.",
    "unary": "A function of one code: `y = table[x + 128]`. The attribute `function` only tells where the table came from.",
    "relu": "From 0 up to `max_value`, and to another scale: `y = table[x + 128]`.",
    "table": """\
Any functions of one code, one after the other, in a table: `y = table[x + place]`. The second input is the table, or the
tables one after the other; the third tells where each element's entry for code 0 is, broadcast over x.""",
    "prelu": """\
`slope` is the second input, with zero point `zs`, broadcast over x.
`y = clip(TWICE(x - zx, multiplier, shift) + zy)` where `x >= zx`, else
`y = clip(TWICE((x - zx) * (slope - zs), negative_multiplier, negative_shift) + zy)`.""",
    "softmax": """\
Along `axis`. `table[d]` is `exp(-scale_of_x * d)` in Q31. `HIGH(a, b)` is `TWICE(a, b, 0)`, and `NEAR(h, right)` the third
step of TWICE alone. With `e[i] = table[max - x[i]]` (`max`: the greatest code along the axis), `total` the sum of all
`NEAR(e[i], 12)` and `zeros` the number of leading zeros of `total` in 32 bits, the reciprocal is found by Newton's method:
    1. `half = (total << zeros) >> 1`, unsigned; `r = 1515870810 + HIGH(half, -1010580540)`
    2. three times: `r = r + 4 * HIGH(r, 2^29 - HIGH(half, r))`
    3. `factor = 2 * r`, saturated to 2^31 - 1
`y[i] = clip(NEAR(HIGH(factor, e[i]), 35 - zeros) + zy)`.""",
    "resize_bilinear": """\
To `size = [rows, columns]`. For each axis, of `n` places to be made `s`:
`step = floor((1024 * n + floor(s / 2)) / s)`; output place `i` lies at `at = i * step + floor(step / 2) - 512`,
between `before = max(floor(at / 1024), 0)` and `behind = min(floor((at + 1023) / 1024), n - 1)`, with the weight
`part = at - 1024 * before` (which may be negative at the edge). With
`above = x[before, left] * (1024 - pc) + x[before, right] * pc` (`left`, `right`, `pc`: before, behind and part of
the column), `below` likewise of row `behind`, and `pr` the row's part: `v = above * (1024 - pr) + below * pr`;
`y = clip((v + (v > 0 ? 2^19 : -2^19)) / 2^20)`, the division truncating.""",
    "reshape": "The same codes in the same order, in another `shape`.",
    "transpose": "Axis `i` of the output is axis `perm[i]` of the input.",
    "pad": "`pads[i] = [before, after]` for axis `i`; what is new is a real zero: the code `zy`.",
    "slice": "For axis `i`, the codes from `begin[i]` up to, but without, `end[i]` (null: the last), by steps of `strides[i]`.",
    "reverse": "From the last to the first along `axis`.",
    "concat": "One input after the other along `axis`; all have one scale.",
    "max_pool2d": f"{_POOL}\n`y` is the greatest code of the window.",
    "max": "The greatest code along `axes`, which stay as sizes of 1 where `keepdims`.",
    "resize_nearest": """\
Each pixel `factors[0]` times down and `factors[1]` times across: `y[i, j] = x[floor(i / factors[0]), floor(j / factors[1])]`.""",
    "tile": "The whole input, `multiples[i]` times along axis `i`.",
    "broadcast": "Repeated along axes of size 1 up to `shape`, aligned at the last axes.",
    "embedding": "Row `ids[..]` of the second input, for each index of the first, which holds plain integers.",
}
"""Operations on codes, by kind."""

BORDER = {
    "quantize": """\
In float32: `v = x / scale` (a division, not a product with the reciprocal), saturated to -2^24 ... 2^24; rounded
half **away from zero** to an integer `n`; `y = clip(n + zy)`. Callers that have codes already leave it out.""",
    "dequantize": "`y = (x - zx) * scale`, in float32.",
}
"""Between real numbers and codes."""

_ACTIVATED = "Then the `activation`: none, relu (`max(y, 0)`) or relu6 (`min(max(y, 0), 6)`)."

REAL = {
    "conv2d": f"As in integers, with real numbers: the bias plus the sum of products over the window. {_ACTIVATED}",
    "depthwise_conv2d": f"As in integers, with real numbers. {_ACTIVATED}",
    "conv2d_transpose": f"As in integers, with real numbers. {_ACTIVATED}",
    "dense": f"`y[o] = bias[o] + sum over c of x[c] * w[c, o]`, with x `[..., n]` and w `[n, cout]`. {_ACTIVATED}",
    "add": f"`a + b`, broadcast. {_ACTIVATED}",
    "sub": f"`a - b`, broadcast. {_ACTIVATED}",
    "mul": f"`a * b`, broadcast. {_ACTIVATED}",
    "div": f"`a / b`, broadcast. {_ACTIVATED}",
    "batch_matmul": "Matrix products of the last two axes, exchanged first where `transpose_a` or `transpose_b`.",
    "maximum": "`max(a, b)`, broadcast.",
    "minimum": "`min(a, b)`, broadcast.",
    "avg_pool2d": f"{_POOL}\n`y` is the mean of the window.",
    "mean": "The mean over `axes`, which stay as sizes of 1 where `keepdims`.",
    "relu": "`min(max(x, 0), max_value)`; null: no bound.",
    "prelu": "`x < 0 ? x * slope : x`; the slope is the second input, broadcast.",
    "cast": "To the type that `to` names.",
    "softmax": "`exp(x - max) / sum of exp(x - max)` along `axis`.",
    "layer_norm": """\
`(x - mean) / sqrt(variance + epsilon) * gamma + beta`: mean and variance (the mean of squared distances from it)
over `axes`; gamma and beta are the second and third input, where there are any.""",
    "resize_bilinear": """\
To `size = [rows, columns]`: for an axis of `n` places to be made `s`, output place `i` lies at
`(i + 0.5) * n / s - 0.5`, held within 0 ... n - 1, and is interpolated between its two neighbours.""",
    "reshape": "As with codes.",
    "transpose": "As with codes: axis `i` of the output is axis `perm[i]` of the input.",
    "pad": "`pads[i] = [before, after]` zeros for axis `i`.",
    "slice": "For axis `i`, from `begin[i]` up to, but without, `end[i]` (null: the last), by steps of `strides[i]`.",
    "reverse": "From the last to the first along `axis`.",
    "concat": "One after the other along `axis`.",
    "max_pool2d": f"{_POOL}\n`y` is the greatest number of the window.",
    "max": "The greatest number along `axes`, which stay as sizes of 1 where `keepdims`.",
    "resize_nearest": "Each pixel `factors[0]` times down and `factors[1]` times across.",
    "tile": "The whole input, `multiples[i]` times along axis `i`.",
    "broadcast": "Repeated along axes of size 1 up to `shape`, aligned at the last axes.",
    "embedding": "Row `ids[..]` of the second input, for each index of the first.",
}
"""Operations on real numbers, by kind; "unary" is told by `FUNCTIONS`."""

FUNCTIONS = {
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "tanh(x)",
    "silu": "x / (1 + exp(-x))",
    "gelu": "x / 2 * (1 + erf(x / sqrt(2)))",
    "gelu_tanh": "x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))",
    "elu": "x > 0 ? x : alpha * (exp(x) - 1)",
    "leaky_relu": "x < 0 ? x * alpha : x",
    "hard_sigmoid": "min(max(x / 6 + 0.5, 0), 1)",
    "hard_swish": "x * min(max(x + 3, 0), 6) / 6",
    "exp": "exp(x)",
    "abs": "|x|",
    "negative": "-x",
    "sqrt": "sqrt(x)",
    "rsqrt": "1 / sqrt(x)",
    "square": "x * x",
    "softplus": "log(1 + exp(x))",
    "log": "log(x)",
}
"""Functions of one real number."""

_FILES = """\
| file | what it holds |
|---|---|
| `graph.json` | every tensor and operation, in the order of their running |
| `arrays.npz` | the arrays that `graph.json` names: weights, biases, multipliers, shifts, tables |
| `model.h` | the same for C99: arrays under the same names, numbers as macros |
| `check.npz` | {samples}: what every tensor holds, by its name in `graph.json`, to compare kernels with |
"""
_PACKED = {
    False: "In `model.h`, each weight lies in a byte, also those of fewer bits.",
    True: """\
In `model.h`, weights of 4 and 2 bits are packed: the first code in the lowest bits of the first byte, two's complement.""",
}


def readme(record: Json, *, samples: str, packed: bool) -> str:
    """The README of one export: only the kinds that occur in it.

    Args:
        record: of `qi.exporters.integers_record.record_of`.
        samples: what check.npz holds, such as "16 samples (given)".
        packed: whether model.h packs weights.

    Raises:
        UnsupportedError: an operation that nothing is told of here; its layer is named.
    """
    head = f"# Model `{record['model']}` in integers\n\nWritten by qi {record['qi']}.\n"
    sections = [head, _FILES.format(samples=samples), f"{_PACKED[packed]}\n", *_borders(record), _GENERAL]
    sections += [*_kinds(record, "integers", "## Operations in integers", INTEGERS)]
    sections += [*_kinds(record, "border", "## Between real numbers and codes", BORDER), *_real(record)]
    return "\n".join(sections)


def _borders(record: Json) -> Iterator[str]:
    for title in ("inputs", "outputs"):
        rows = []
        for name in record[title]:
            entry = record["tensors"][name]
            codes = entry.get("codes")
            how = f"codes, scale {codes['scale']!r}, zero point {codes['zero_point']}" if codes else "plain values"
            shape = " x ".join("batch" if n is None else str(n) for n in entry["shape"])
            rows.append(f"* `{name}` (`{entry['name']}`): {entry['type']}, {shape}, {how}")
        yield "\n".join([f"## {title.capitalize()}", "", *rows, ""])


def _of(record: Json, domain: str) -> dict[str, list[Json]]:
    """The operations of a domain, by kind."""
    found: dict[str, list[Json]] = {}
    for entry in record["operations"]:
        if entry["domain"] == domain:
            found.setdefault(entry["kind"], []).append(entry)
    return found


def _kinds(record: Json, domain: str, title: str, texts: Mapping[str, str]) -> Iterator[str]:
    found = _of(record, domain)
    if found:
        yield f"{title}\n"
    for kind, entries in sorted(found.items()):
        yield f"### {kind}\n\n{_users(entries)}\n\n{_told(kind, entries, texts)}\n"


def _users(entries: list[Json]) -> str:
    return ", ".join(f"`{entry['id']}` ({entry['layer']})" for entry in entries)


def _told(kind: str, entries: list[Json], texts: Mapping[str, str]) -> str:
    if kind not in texts:
        raise UnsupportedError(
            f"expected operations whose arithmetic is documented; received {kind!r} of layer {told(entries[0]['layer'])}; "
            "do export to .tflite or .onnx, or leave the layer out of the model that is deployed"
        )
    return texts[kind]


def _real(record: Json) -> Iterator[str]:
    found = _of(record, "real")
    if not found:
        yield "## Operations in real numbers\n\nNone.\n"
        return
    yield (
        "## Operations in real numbers\n\nThese have no integer kernel. They take and give float32 (or plain integers, such as "
        "indices);\na constant with `codes` stands for `(code - zero_point) * scale`. The codes between which they lie are\n"
        "those of the operations of the section before, which `graph.json` tells.\n"
    )
    for kind, entries in sorted(found.items()):
        yield f"### {kind}\n\n{_users(entries)}\n"
        if kind != "unary":
            yield f"{_told(kind, entries, REAL)}\n"
            continue
        for name in sorted({entry["attributes"]["function"] for entry in entries}):
            users = [entry for entry in entries if entry["attributes"]["function"] == name]
            yield f"* {name}: `{_told(name, users, FUNCTIONS)}`\n"
