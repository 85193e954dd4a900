"""The C header of an export of integers: arrays, and what is known of every tensor and operation as macros."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qi.core.packing import pack
from qi.errors import UnsupportedError
from qi.typing import Json

__all__ = ["header"]

_TYPES = {
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "bool": "uint8_t",
    "float32": "float",
}
_WIDTH = 110


def header(record: Json, arrays: Mapping[str, np.ndarray], *, packed: bool = False) -> str:
    """The header as text: C99, ASCII, without dependencies but the standard's.

    Args:
        record: of `qi.exporters.integers_record.record_of`.
        arrays: likewise.
        packed: whether weights below 8 bits are packed; by default each lies in a byte.

    Raises:
        UnsupportedError: a constant of a type that C has no fixed name for.
    """
    guard = f"{record['prefix'].upper()}_MODEL_H"
    head = [
        f"/* Model {_comment(repr(record['model']))} in integers, by qi {record['qi']}. README.md beside this file tells how to",
        "   compute each operation, graph.json holds the same facts for programs. Arrays are in C order. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
    ]
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays.values()):
        head.append("#include <math.h>")  # for NAN and INFINITY; not every compiler of small processors has it
    lines = [*head, *_tensors(record), *_operations(record, arrays, packed), "", f"#endif /* {guard} */", ""]
    return "\n".join(lines)


def _comment(text: str) -> str:
    """Text that ends no comment, begins none, continues no line and makes no trigraph."""
    plain = text.encode("ascii", "backslashreplace").decode().replace("\\", "/").replace("??", "? ?")
    return "".join(c if c.isprintable() else " " for c in plain).replace("*/", "* /").replace("/*", "/ *")


def _defined(name: str, value: Any) -> str:
    return f"#define {name.upper()} {_number(value)}"


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value) if value >= 0 else f"({value})"
    return f"{value!r}" if value >= 0 else f"({value!r})"


def _shown(entry: Json) -> str:
    sizes = "x".join("batch" if n is None else str(n) for n in entry["shape"]) or "scalar"
    return f"{entry['type']} {sizes}, {_comment(repr(entry['name']))}"


def _tensors(record: Json) -> Iterator[str]:
    """Sizes (of one sample), zero points and scales."""
    yield from ("", "/* ---- Tensors: SIZE counts the elements of one sample; real = (code - ZERO_POINT) * SCALE. */")
    for name, entry in record["tensors"].items():
        sizes = {i: n for i, n in enumerate(entry["shape"]) if n is not None}
        yield from ("", f"/* {name}: {_shown(entry)} */", _defined(f"{name}_SIZE", math.prod(sizes.values())))
        yield from (_defined(f"{name}_DIM{i}", n) for i, n in sizes.items())
        codes = entry.get("codes", {})
        if codes:
            yield _defined(f"{name}_BITS", codes["bits"])
            yield _defined(f"{name}_ZERO_POINT", codes["zero_point"])
        if "scale" in codes:
            yield f"#define {name.upper()}_SCALE {_float(codes['scale'])}"


def _operations(record: Json, arrays: Mapping[str, np.ndarray], packed: bool) -> Iterator[str]:
    yield from ("", "/* ---- Operations, in the order of their running. */")
    tensors, done = record["tensors"], set()
    for entry in record["operations"]:
        name = entry["id"]
        yield from ("", f"/* {name}: {entry['kind']}, {_place(entry)}, layer {_comment(repr(entry['layer']))}")
        yield f"   {', '.join(entry['outputs'])} = {entry['kind']}({', '.join(entry['inputs'])})"
        texts = [f"{key} {_comment(value)}" for key, value in entry["attributes"].items() if isinstance(value, str)]
        yield f"   {'; '.join(texts)} */" if texts else "*/"
        for key, value in entry["attributes"].items():
            yield from _attributes(f"{name}_{key}", value)
        if "code_range" in entry:
            least, greatest = entry["code_range"]
            yield from (_defined(f"{name}_CODE_MIN", least), _defined(f"{name}_CODE_MAX", greatest))
        for key, value in entry.get("fixed_point", {}).items():
            if isinstance(value, str):
                yield from _array(value, arrays[value])
            else:
                yield _defined(f"{name}_{key}", value)
        for tensor in entry["inputs"]:
            if tensors[tensor].get("constant") and tensor not in done:
                done.add(tensor)
                bits = tensors[tensor].get("codes", {}).get("bits", 8)
                yield from _constant(tensor, arrays[tensor], bits if packed else 8)
            scales = tensors[tensor].get("codes", {}).get("scales")
            if scales and entry["domain"] != "integers" and scales not in done:
                done.add(scales)
                yield from _array(scales, arrays[scales])


def _place(entry: Json) -> str:
    return {"integers": "in integers", "border": "between real numbers and codes", "real": "in real numbers"}[
        entry["domain"]
    ]


def _attributes(name: str, value: Any) -> Iterator[str]:
    """A number as a macro, a list as one for each place; texts are in the comment, None is left out."""
    if isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _attributes(f"{name}_{i}", part)
    elif isinstance(value, (bool, int, float)):
        yield _defined(name, value)


def _constant(name: str, array: np.ndarray, bits: int) -> Iterator[str]:
    if bits in (2, 4):
        yield f"/* {bits} bits each, the first code in the lowest bits of the first byte, two's complement */"
        yield from _array(name, pack(array, bits))
    else:
        yield from _array(name, array)


def _array(name: str, array: np.ndarray) -> Iterator[str]:
    if array.dtype.name not in _TYPES:
        raise UnsupportedError(f"expected constants of {sorted(_TYPES)}; received {name!r} of {array.dtype}")
    if not array.size:
        return  # C99 has no empty arrays
    values = array.ravel().tolist()
    texts = [_float(v) if array.dtype.kind == "f" else _integer(int(v)) for v in values]
    yield f"static const {_TYPES[array.dtype.name]} {name}[{array.size}] = {{"
    step = max(1, _WIDTH // (max(map(len, texts)) + 2))
    yield from (f"    {', '.join(texts[i : i + step])}," for i in range(0, len(texts), step))
    yield "};"


def _integer(value: int) -> str:
    """The least numbers of 32 and 64 bits have no literal."""
    if value in (-(2**31), -(2**63)):
        return f"({value + 1}{'LL' if value == -(2**63) else ''} - 1)"
    return str(value)


def _float(value: float) -> str:
    """Nine digits tell all of float32 apart."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
