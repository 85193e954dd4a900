"""Many random operations, or graphs, by hand.

``python -m tests.parity.fuzz litert|reference|onnxruntime 500 [first seed] [kind ...]``; the kind "graphs" is for graphs of
several layers.
"""

from __future__ import annotations

import sys

from tests.parity import agreement, onnx_agreement
from tests.parity.operations import cases
from tests.parity.random_graphs import graphs


def main(target: str, count: str = "500", seed: str = "0", *kinds: str) -> int:
    if kinds == ("graphs",):
        named = graphs(int(count), int(seed))
    else:
        named = cases(int(count), list(kinds) or None, int(seed))
    counts, differing = onnx_agreement.survey(named) if target == "onnxruntime" else agreement.survey(named, target)
    for line in differing:
        print(line)
    print(
        f"{target}: {counts['cases']} cases, {counts['codes']} codes, {counts['refused']} refused, {len(differing)} differ"
    )
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
