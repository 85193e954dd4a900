"""Runs an export of integers: plain numpy that follows the export's README and reads nothing but graph.json and arrays.npz.

It knows nothing of the library that wrote them, and does most things place by place, as a first kernel would.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

Entry = dict[str, Any]


def twice(x: Any, multiplier: Any, shift: Any) -> np.ndarray:
    """TWICE of the README."""
    multiplier, shift = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    a = np.clip(np.asarray(x, np.int64) * 2**left, -(2**31), 2**31 - 1)
    return near(np.floor_divide(a * multiplier + 2**30, 2**31), right)


def near(h: Any, right: Any) -> np.ndarray:
    """The third step of it."""
    mask = 2 ** np.asarray(right, np.int64) - 1
    rest, threshold = h & mask, (mask >> 1) + np.where(h < 0, 1, 0)
    return (h >> right) + (rest > threshold)


def once(x: Any, multiplier: Any, shift: Any) -> np.ndarray:
    """ONCE of the README."""
    multiplier, shift = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    return (np.asarray(x, np.int64) * multiplier + 2 ** (30 - shift)) >> (31 - shift)


class Interpreter:
    """One export."""

    def __init__(self, folder: Path) -> None:
        self.graph: Entry = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}

    def run(self, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Every tensor, by its name in graph.json."""
        values = dict(zip(self.graph["inputs"], inputs, strict=True))
        self.batch = len(inputs[0])
        for name, tensor in self.graph["tensors"].items():
            if tensor.get("constant"):
                values[name] = self.arrays[name]
        for op in self.graph["operations"]:
            if op["domain"] == "real":
                raise NotImplementedError(op["kind"])
            given = [values[name] for name in op["inputs"]]
            given = [a.astype(np.int64) if a.dtype.kind == "i" else a for a in given]
            found = getattr(self, f"_{op['kind']}")(op, *given)
            if op["domain"] == "integers":
                assert found.min() >= -128
                assert found.max() <= 127
                found = found.astype(np.int8)
            values[op["outputs"][0]] = found
        return values

    # What operations need ------------------------------------------------------------------------------------------

    def _zero(self, name: str) -> int:
        return int(self.graph["tensors"][name]["codes"]["zero_point"])

    def _zeros(self, op: Entry) -> tuple[list[int], int]:
        tensors = self.graph["tensors"]
        return [self._zero(n) if "codes" in tensors[n] else 0 for n in op["inputs"]], self._zero(op["outputs"][0])

    def _scale(self, name: str) -> np.float32:
        return np.float32(self.graph["tensors"][name]["codes"]["scale"])

    def _number(self, op: Entry, key: str) -> Any:
        value = op["fixed_point"][key]
        return self.arrays[value] if isinstance(value, str) else value

    def _factor(self, op: Entry, prefix: str = "") -> tuple[Any, Any]:
        return self._number(op, f"{prefix}multiplier"), self._number(op, f"{prefix}shift")

    def _shape(self, op: Entry) -> list[int]:
        return [self.batch if n is None else n for n in self.graph["tensors"][op["outputs"][0]]["shape"]]

    def _clip(self, op: Entry, codes: np.ndarray) -> np.ndarray:
        least, greatest = op["code_range"]
        return np.minimum(np.maximum(codes, least), greatest)

    # Convolutions and products -------------------------------------------------------------------------------------

    def _window(self, op: Entry, x: np.ndarray, i: int, j: int, size: tuple[int, int]) -> Any:
        """(k, l, the inputs there) for each place of the window that lies within x."""
        (sh, sw), (top, _, left, _) = op["attributes"]["strides"], op["attributes"]["pads"]
        dh, dw = op["attributes"].get("dilation", (1, 1))
        for k, el in itertools.product(range(size[0]), range(size[1])):
            row, column = i * sh + k * dh - top, j * sw + el * dw - left
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                yield k, el, x[:, row, column]

    def _sums(self, op: Entry, bias: np.ndarray | None) -> np.ndarray:
        sums = np.zeros(self._shape(op), np.int64)
        return sums if bias is None else sums + bias

    def _end(self, op: Entry, sums: np.ndarray) -> np.ndarray:
        assert np.abs(sums).max() < 2**31
        return self._clip(op, twice(sums, *self._factor(op)) + self._zeros(op)[1])

    def _conv2d(self, op: Entry, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        x, sums, groups = x - self._zeros(op)[0][0], self._sums(op, bias), op["attributes"]["groups"]
        cin, cout = w.shape[2], w.shape[3] // groups
        for i, j in itertools.product(range(sums.shape[1]), range(sums.shape[2])):
            for k, el, seen in self._window(op, x, i, j, w.shape[:2]):
                for g in range(groups):
                    outs = slice(g * cout, (g + 1) * cout)
                    sums[:, i, j, outs] += seen[:, g * cin : (g + 1) * cin] @ w[k, el, :, outs]
        return self._end(op, sums)

    def _depthwise_conv2d(self, op: Entry, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        x, sums = x - self._zeros(op)[0][0], self._sums(op, bias)
        seen_by = np.arange(w.shape[2]) // (w.shape[2] // x.shape[3])
        for i, j in itertools.product(range(sums.shape[1]), range(sums.shape[2])):
            for k, el, seen in self._window(op, x, i, j, w.shape[:2]):
                sums[:, i, j] += seen[:, seen_by] * w[k, el]
        return self._end(op, sums)

    def _conv2d_transpose(self, op: Entry, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        x, sums = x - self._zeros(op)[0][0], self._sums(op, bias)
        (sh, sw), (dh, dw) = op["attributes"]["strides"], op["attributes"]["dilation"]
        top, _, left, _ = op["attributes"]["pads"]
        for i, j, k, el in itertools.product(*map(range, (*x.shape[1:3], *w.shape[:2]))):
            row, column = i * sh + k * dh - top, j * sw + el * dw - left
            if 0 <= row < sums.shape[1] and 0 <= column < sums.shape[2]:
                sums[:, row, column] += x[:, i, j] @ w[k, el].T
        return self._end(op, sums)

    def _dense(self, op: Entry, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        (zx, *_), zy = self._zeros(op)
        sums = (x - zx) @ w + (0 if bias is None else bias)
        return self._clip(op, once(sums, *self._factor(op)) + zy)

    def _batch_matmul(self, op: Entry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        (za, zb), zy = self._zeros(op)
        a = a.swapaxes(-1, -2) if op["attributes"]["transpose_a"] else a
        b = b.swapaxes(-1, -2) if op["attributes"]["transpose_b"] else b
        return self._clip(op, twice((a - za) @ (b - zb), *self._factor(op)) + zy)

    # Two tensors ---------------------------------------------------------------------------------------------------

    def _parts(self, op: Entry, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (za, zb), up = self._zeros(op)[0], 2 ** self._number(op, "left_shift")
        return twice((a - za) * up, *self._factor(op, "input0_")), twice((b - zb) * up, *self._factor(op, "input1_"))

    def _add(self, op: Entry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        p, q = self._parts(op, a, b)
        return self._clip(op, twice(p + q, *self._factor(op, "output_")) + self._zeros(op)[1])

    def _sub(self, op: Entry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        p, q = self._parts(op, a, b)
        return self._clip(op, twice(p - q, *self._factor(op, "output_")) + self._zeros(op)[1])

    def _mul(self, op: Entry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        (za, zb), zy = self._zeros(op)
        return self._clip(op, twice((a - za) * (b - zb), *self._factor(op)) + zy)

    def _maximum(self, op: Entry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.maximum(a, b)

    def _minimum(self, op: Entry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.minimum(a, b)

    def _prelu(self, op: Entry, x: np.ndarray, slope: np.ndarray) -> np.ndarray:
        (zx, zs), zy = self._zeros(op)
        above = twice(x - zx, *self._factor(op)) + zy
        below = twice((x - zx) * (slope - zs), *self._factor(op, "negative_")) + zy
        return self._clip(op, np.where(x >= zx, above, below))

    # Functions, means ----------------------------------------------------------------------------------------------

    def _looked_up(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return self._number(op, "table")[x + 128]

    _unary = _relu = _looked_up

    def _table(self, op: Entry, x: np.ndarray, table: np.ndarray, places: np.ndarray) -> np.ndarray:
        return table[x + places]

    def _softmax(self, op: Entry, x: np.ndarray) -> np.ndarray:
        table, x = self._number(op, "table"), np.moveaxis(x, op["attributes"]["axis"], 0)
        assert table.dtype == np.int32
        e = table[x.max(axis=0) - x].astype(np.int64)
        total = near(e, 12).sum(axis=0)
        zeros = np.array([32 - int(n).bit_length() for n in total.reshape(-1)]).reshape(total.shape)
        half = (total << zeros) >> 1
        r = 1515870810 + twice(half, -1010580540, 0)
        for _ in range(3):
            r = r + 4 * twice(r, 2**29 - twice(half, r, 0), 0)
        factor = np.minimum(2 * r, 2**31 - 1)
        y = self._clip(op, near(twice(factor, e, 0), 35 - zeros) + self._zeros(op)[1])
        return np.moveaxis(y, 0, op["attributes"]["axis"])

    def _mean(self, op: Entry, x: np.ndarray) -> np.ndarray:
        (zx,), zy = self._zeros(op)
        sums = (x - zx).sum(axis=tuple(op["attributes"]["axes"]), keepdims=op["attributes"]["keepdims"])
        return self._clip(op, twice(sums, *self._factor(op)) + zy)

    def _pooled(self, op: Entry, x: np.ndarray, function: Any) -> np.ndarray:
        y = np.zeros(self._shape(op), np.int64)
        for i, j in itertools.product(range(y.shape[1]), range(y.shape[2])):
            y[:, i, j] = function([seen for _, _, seen in self._window(op, x, i, j, op["attributes"]["pool"])])
        return y

    def _avg_pool2d(self, op: Entry, x: np.ndarray) -> np.ndarray:
        def mean(seen: list[np.ndarray]) -> np.ndarray:
            total, n = np.sum(seen, axis=0), len(seen)
            return np.trunc(np.where(total > 0, total + n // 2, total - n // 2) / n).astype(np.int64)

        (zx,), zy = self._zeros(op)
        means = self._pooled(op, x, mean)
        return self._clip(op, twice(means - zx, *self._factor(op)) + zy if "fixed_point" in op else means)

    def _max_pool2d(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return self._pooled(op, x, lambda seen: np.max(seen, axis=0))

    def _max(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return x.max(axis=tuple(op["attributes"]["axes"]), keepdims=op["attributes"]["keepdims"])

    # Moving codes --------------------------------------------------------------------------------------------------

    def _reshape(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return x.reshape(self._shape(op))

    def _transpose(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return x.transpose(op["attributes"]["perm"])

    def _pad(self, op: Entry, x: np.ndarray) -> np.ndarray:
        y = np.full(self._shape(op), self._zeros(op)[1], np.int64)
        y[
            tuple(slice(before, before + n) for (before, _), n in zip(op["attributes"]["pads"], x.shape, strict=True))
        ] = x
        return y

    def _slice(self, op: Entry, x: np.ndarray) -> np.ndarray:
        begin, end, strides = (op["attributes"][key] for key in ("begin", "end", "strides"))
        return x[tuple(slice(*part) for part in zip(begin, end, strides, strict=True))]

    def _concat(self, op: Entry, *arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, axis=op["attributes"]["axis"])

    def _reverse(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return np.flip(x, op["attributes"]["axis"])

    def _tile(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return np.tile(x, op["attributes"]["multiples"])

    def _broadcast(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, self._shape(op))

    def _embedding(self, op: Entry, ids: np.ndarray, table: np.ndarray) -> np.ndarray:
        return table[ids]

    def _resize_nearest(self, op: Entry, x: np.ndarray) -> np.ndarray:
        down, across = op["attributes"]["factors"]
        _, rows, columns, _ = self._shape(op)
        return x[:, np.arange(rows) // down][:, :, np.arange(columns) // across]

    def _resize_bilinear(self, op: Entry, x: np.ndarray) -> np.ndarray:
        def places(n: int, s: int) -> list[tuple[int, int, int]]:
            step = (1024 * n + s // 2) // s
            found = []
            for i in range(s):
                at = i * step + step // 2 - 512
                before = max(at // 1024, 0)
                found.append((before, min((at + 1023) // 1024, n - 1), at - 1024 * before))
            return found

        y = np.zeros(self._shape(op), np.int64)
        rows, columns = (places(n, s) for n, s in zip(x.shape[1:3], op["attributes"]["size"], strict=True))
        for (i, (before, behind, pr)), (j, (left, right, pc)) in itertools.product(enumerate(rows), enumerate(columns)):
            above = x[:, before, left] * (1024 - pc) + x[:, before, right] * pc
            below = x[:, behind, left] * (1024 - pc) + x[:, behind, right] * pc
            v = above * (1024 - pr) + below * pr
            y[:, i, j] = np.trunc((v + np.where(v > 0, 2**19, -(2**19))) / 2**20)
        return self._clip(op, y)

    # Between real numbers and codes --------------------------------------------------------------------------------

    def _quantize(self, op: Entry, x: np.ndarray) -> np.ndarray:
        (zx,), zy = self._zeros(op)
        if op["domain"] == "integers":
            return self._clip(op, twice(x - zx, *self._factor(op)) + zy)
        v = np.clip(x.astype(np.float32) / self._scale(op["outputs"][0]), np.float32(-(2**24)), np.float32(2**24))
        whole = np.trunc(v)
        n = whole + np.where(np.abs(v - whole) >= 0.5, np.sign(v), 0)
        return self._clip(op, n.astype(np.int64) + zy).astype(np.int8)

    def _dequantize(self, op: Entry, x: np.ndarray) -> np.ndarray:
        return (x - self._zero(op["inputs"][0])).astype(np.float32) * self._scale(op["inputs"][0])
