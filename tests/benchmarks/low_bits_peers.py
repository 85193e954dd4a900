"""Post-training quantization at 8, 4, 3 and 2 bits beside that of others, on the same models and data: a Markdown page.

Every peer runs in a virtual environment of its own, which is made from the package index at the first run; its results are kept
in the work folder and measured anew only when its script, version or setting changes. QI's are always measured anew.

Run: python -m tests.benchmarks.low_bits_peers [--write docs/low_bits_peers.md] [--peers mct,aeq,keras,ort] [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.common import MODELS, bench_dir, load_data, load_float
from tests.benchmarks.peers.page import GRADIENT_EPOCHS, NOT_MEASURED, STOPPED, Result, Row, page

SCRIPTS = Path(__file__).resolve().parent / "peers"
BITS = (8, 4, 3, 2)
CAP = 360


class Peer(NamedTuple):
    """Who is compared.

    Attributes:
        title: Its name and version.
        script: In the folder peers.
        requirements: For pip; none: the interpreter that runs the benchmark.
        python: The version of Python that it needs.
    """

    title: str
    script: str
    requirements: tuple[str, ...] = ()
    python: str = "3.11"


PEERS = {
    "ours": Peer("QI", "ours.py"),
    "mct": Peer("MCT 2.6.1", "mct.py", ("model-compression-toolkit==2.6.1", "tensorflow==2.15.1")),
    "aeq": Peer("AI Edge Quantizer 0.10.0", "aeq.py", ("ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0")),
    "ort": Peer("ONNX Runtime 1.32.0", "ort.py", ("onnxruntime==1.32.0", "onnx==1.23.2", "sympy")),
    "keras": Peer(
        "Keras 3.15.1",
        "keras_native.py",
        ("keras==3.15.1", "tensorflow==2.21.0", "tf2onnx==1.17.0", "onnxruntime==1.32.0"),
    ),
}

# Rows of QI: a recipe, and algorithms for its weights between the first and the last layer, where its name doesn't say them;
# other keywords are passed to `quantize_model`: {"recipe": "w{bits}a8", "effort": "best"}.
OURS: dict[str, dict[str, Any]] = {
    "round to nearest, min/max": {"recipe": "w{bits}a8_minmax"},
    "effort fast": {"recipe": "w{bits}a8", "effort": "fast"},
    "effort balanced": {"recipe": "w{bits}a8", "effort": "balanced"},
    "effort best": {"recipe": "w{bits}a8", "effort": "best"},
}

NO_HESSIAN = {
    "use_hessian_based_weights": False,
    "use_hessian_sample_attention": False,
    "gradual_activation_quantization": False,
}
EIGHT, DYNAMIC, FLOAT = "8 bits", "8 bits, dynamic", "float"


def rows() -> list[Row]:
    """The table's."""

    def aeq(label: str, mode: str, algorithm: str, activations: str) -> Row:
        return Row("aeq", label, activations, {"mode": mode, "algorithm": algorithm})

    nearest, epochs = "min_max_uniform_quantize", {"n_epochs": GRADIENT_EPOCHS}
    return [
        *(Row("ours", label, EIGHT, options) for label, options in OURS.items()),
        Row("mct", "PTQ, defaults", EIGHT, {}),
        Row("mct", "PTQ, k-means weights", EIGHT, {"weights": "LUT_SYM_QUANTIZER"}, bits=(4, 3, 2)),
        Row(
            "mct",
            f"gradient PTQ, {GRADIENT_EPOCHS} epochs, no Hessian",
            EIGHT,
            {"gradient": NO_HESSIAN | {"n_epochs": GRADIENT_EPOCHS}},
            bits=(4, 3, 2),
        ),
        Row("mct", f"gradient PTQ, {GRADIENT_EPOCHS} epochs, defaults", EIGHT, {"gradient": epochs}, bits=(4, 3, 2)),
        aeq("static, min/max", "static", nearest, EIGHT),
        aeq("static, OCTAV", "static", "OCTAV", EIGHT),
        aeq("static, MSE", "static", "MSE", EIGHT),
        aeq("static, GPTQ", "static", "GPTQ", EIGHT),
        Row(
            "aeq",
            "static, GPTQ where it knows it, OCTAV elsewhere",
            EIGHT,
            {"mode": "static", "algorithm": "GPTQ", "elsewhere": "OCTAV"},
        ),
        aeq("dynamic, min/max", "dynamic", nearest, DYNAMIC),
        aeq("dynamic, OCTAV", "dynamic", "OCTAV", DYNAMIC),
        aeq("weights only, OCTAV", "weight_only", "OCTAV", FLOAT),
        *(
            Row("ort", f"static QDQ, {name}{told}", EIGHT, {"calibration": name})
            for name, told in (("MinMax", ""), ("Entropy", " (its 128 bins make it MinMax)"), ("Percentile", ""))
        ),
        Row("keras", "int8, int4", FLOAT, {"mode": "int"}),
        Row("keras", "GPTQ", FLOAT, {"mode": "gptq"}),
        Row("keras", "GPTQ, made to see its inputs", FLOAT, {"mode": "gptq fed"}),
    ]


def main() -> None:
    """Measures what is asked for, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page, otherwise it is printed")
    parser.add_argument("--peers", default=",".join(list(PEERS)[1:]), help="which, with commas between them")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "qi" / "low_bits_peers")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cap", type=float, default=CAP, help="seconds that one cell may take")
    parser.add_argument(
        "--only", default="", help="measure rows whose label has this in it; the others' results are kept"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what is kept, too")
    parser.add_argument("--kept", action="store_true", help="measure nothing: a page of the results in the work folder")
    given = parser.parse_args()
    chosen = ["ours", *filter(None, given.peers.split(","))]
    if unknown := set(chosen) - set(PEERS):
        parser.error(f"expected peers of {', '.join(list(PEERS)[1:])}; received {', '.join(sorted(unknown))}")
    bench = Bench(given.work.resolve(), given.cap, given.kept, given.only, given.again)
    wanted = [row for row in rows() if row.peer in chosen]
    results: dict[tuple[str, Row, int], Result] = {}
    models = given.models.split(",")
    for name in models:
        bench.prepare(name)
        for row in wanted:
            for bits in row.bits:
                results[name, row, bits] = bench.measured(name, row, bits)
    command = "python -m tests.benchmarks.low_bits_peers --write docs/low_bits_peers.md"
    floats = {name: bench.float_top1(name) for name in models}
    titles = {name: PEERS[name].title for name in chosen}
    text = page(results, floats, titles, wanted, BITS, command, given.cap)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    else:
        print(text)


class Bench:
    """The work folder: environments, inputs, results."""

    def __init__(self, work: Path, cap: float, kept: bool, only: str, again: bool) -> None:
        self.work, self.cap, self.kept, self.only, self.again = work, cap, kept, only, again
        self.inputs, self.logs = work / "inputs", work / "logs"
        for folder in (self.inputs, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.store = work / "results.json"
        self.results = self._stored()
        self.failed: dict[str, str] = {}

    def _stored(self) -> dict[str, Result]:
        return dict(json.loads(self.store.read_text(encoding="utf-8"))) if self.store.exists() else {}

    def prepare(self, name: str) -> None:
        """Writes the data, and a model in every form that a peer takes."""
        data = load_data()
        if not (self.inputs / "data.npz").exists():
            np.savez(self.inputs / "data.npz", **data._asdict())
        done = self.inputs / f"{name}.json"
        if done.exists():
            return
        model = load_float(name)
        shutil.copyfile(bench_dir() / "models" / f"{name}.keras", self.inputs / f"{name}.keras")
        weights = {f"{layer.name}/{at}": one for layer in model.layers for at, one in enumerate(layer.get_weights())}
        np.savez(self.inputs / f"{name}.npz", scores=model.predict(data.x_calib[:64], verbose=0), **weights)
        if interpreter := self.interpreter("keras"):
            command = [interpreter, SCRIPTS / "float_files.py", "--inputs", self.inputs, "--model", name]
            self.logged("keras", command)
        scores = model.predict(data.x_test, batch_size=250, verbose=0)
        kernels = [layer.name for layer in model.layers if hasattr(layer, "kernel")]
        about = {
            "config": json.loads(model.to_json())["config"],
            "ends": [kernels[0], kernels[-1]],
            "kernels": len(kernels),
            "top1": 100 * float(np.mean(scores.argmax(-1) == data.y_test)),
        }
        done.write_text(json.dumps(about), encoding="utf-8")

    def float_top1(self, name: str) -> float:
        """The model's own accuracy."""
        return float(json.loads((self.inputs / f"{name}.json").read_text(encoding="utf-8"))["top1"])

    def interpreter(self, name: str) -> str | None:
        """The peer's Python, its environment made if need be; None where that fails, with the reason in `failed`."""
        peer, folder = PEERS[name], self.work / name
        if not peer.requirements:
            return sys.executable
        found, stamp = folder / "bin" / "python", folder / "requirements.txt"
        wanted = "\n".join(peer.requirements)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return str(found)
        if name in self.failed:
            return None
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        base = sys.executable if version == peer.python else shutil.which(f"python{peer.python}")
        if base is None:
            self.failed[name] = f"needs Python {peer.python}, which is not here"
            return None
        print(f"making the environment of {peer.title}", file=sys.stderr, flush=True)
        for command in ([base, "-m", "venv", folder], [found, "-m", "pip", "install", "-q", *peer.requirements]):
            if self.logged(name, command):
                last = (self.logs / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
                self.failed[name] = f"pip: {' '.join(last)}"
                return None
        stamp.write_text(wanted, encoding="utf-8")
        return str(found)

    def logged(self, name: str, command: Sequence[object]) -> int:
        """Runs a command out of the way of others; what it prints goes to the peer's log."""
        with (self.logs / f"{name}.log").open("w", encoding="utf-8") as log:
            return subprocess.run(
                _quietly(command), env=_surroundings(name), stdout=log, stderr=log, check=False
            ).returncode

    def measured(self, model: str, row: Row, bits: int) -> Result:
        """One cell, from the kept results where nothing has changed."""
        key = self._key(model, row, bits)
        kept = self.results.get(key)
        kept_as_is = self.kept or self.only not in f"{PEERS[row.peer].title}: {row.label}"
        done = kept and ("top1" in kept or kept.get("cap", self.cap) >= self.cap)
        current = row.peer != "ours" and not self.again and done
        if kept_as_is or current:
            return kept or {"error": NOT_MEASURED}
        print(f"{model}: {PEERS[row.peer].title}, {row.label}, w{bits}", file=sys.stderr, flush=True)
        interpreter = self.interpreter(row.peer)
        if interpreter is None:
            return {"error": self.failed[row.peer]}
        found = self._ran(interpreter, model, row, bits)
        self.results = {**self._stored(), key: found}
        scratch = self.store.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        scratch.replace(self.store)
        print(
            "    " + (f"{found['top1']:.2f}" if "top1" in found else found["error"][:200]), file=sys.stderr, flush=True
        )
        return found

    def _ran(self, interpreter: str, model: str, row: Row, bits: int) -> Result:
        script = SCRIPTS / PEERS[row.peer].script
        what = ["--inputs", self.inputs, "--model", model, "--bits", bits, "--options", json.dumps(row.options)]
        command = _quietly([interpreter, script, *what])
        before = sum(os.times()[2:4])
        with (self.logs / f"{row.peer}.log").open("w", encoding="utf-8") as log:
            try:
                done = subprocess.run(
                    command,
                    env=_surroundings(row.peer),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    timeout=self.cap,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                used = sum(os.times()[2:4]) - before
                return {"error": f"{STOPPED} after {self.cap:.0f} s ({used:.0f} s of processor time)", "cap": self.cap}
        lines = done.stdout.decode().strip().splitlines()
        if not lines:
            return {"error": f"the process ended with {done.returncode} and no result"}
        return {**json.loads(lines[-1]), "cap": self.cap}

    def _key(self, model: str, row: Row, bits: int) -> str:
        peer = PEERS[row.peer]
        code = zlib.crc32((SCRIPTS / peer.script).read_bytes() + (SCRIPTS / "cell.py").read_bytes())
        return "|".join([*peer.requirements, f"{code:08x}", model, str(bits), json.dumps(row.options, sort_keys=True)])


def _quietly(command: Sequence[object]) -> list[str]:
    nice = shutil.which("nice")
    return [*([nice, "-n", "10"] if nice else []), *map(str, command)]


def _surroundings(name: str) -> dict[str, str]:
    """The environment variables of a peer's process: QI is on the path of QI's alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KERAS"))}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONHASHSEED": "0"}
    return {**kept, **quiet, **({"PYTHONPATH": str(SCRIPTS.parents[2])} if name == "ours" else {})}


if __name__ == "__main__":
    main()
