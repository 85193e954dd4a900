"""The service beside a plain FastAPI endpoint, its event loop and its memory; each server is a process of its own.

Run: python -m tests.benchmarks.service [ratios] [loop] [memory] [load]

Everything is on loopback, and the machine's cores are shared by server and clients. `load` needs wrk.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks.service_load import load
from tests.benchmarks.serving import (
    Form,
    Server,
    binary_forms,
    get,
    json_form,
    machine,
    plain,
    post,
    quantile,
    service,
)

MIB = 1 << 20
SHAPES = {(10, 100): 200, (100, 1000): 40, (1000, 1000): 15}
"""Shapes of arrays, and rounds in which each is sent in every form."""
TARGETS = {"npy": 30, "JSON": 3, "JSON, short": 3}
"""Times as fast as the plain endpoint at a million floats."""
LOOP_TARGET = 20.0
"""Milliseconds for GET / at the 95th percentile while large arrays are worked on."""
MEMORY_TARGET = 4.0
"""Bytes that one request may take for each byte of its float32 array."""
OPERATIONS = ("quantize", "dequantize", "quantize_dequantize")


def array_of(*shape: int) -> np.ndarray:
    """Float32 values as a layer has them."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ratios() -> None:
    """Milliseconds from request to answer, and times as fast as the plain endpoint, median and quartiles of the rounds.

    "short" is JSON with the digits that a float32 needs, which has a base of its own. A million numbers with 17 digits are
    more JSON than the service takes by default. Processor time is the server's, and tells the same where the machine has
    other work.
    """
    print("\nfrom request to answer, one client; x plain: paired in each round; (quartiles); cpu: the server's")
    print(f"{'floats':>9} {'':18}{'ms':>9} {'':19}{'x plain':>8} {'':17}{'MB/s':>7}{'cpu ms':>8}{'x plain':>8}")
    path = "/instances/default/quantize"
    with service(max_json_bytes=64 * MIB) as ours, plain() as other:
        for shape, rounds in SHAPES.items():
            array = array_of(*shape)
            forms = {"JSON": json_form(array, path), "JSON, short": json_form(array, path, short=True)}
            forms |= binary_forms(array)
            _check(ours, forms)
            requests = {
                "plain": (other, json_form(array, "/quantize")),
                "plain, short": (other, json_form(array, "/quantize", short=True)),
            }
            times = _rounds(requests | {name: (ours, form) for name, form in forms.items()}, rounds)
            for name in times:
                _ratio_row(array, name, times[name], times["plain, short" if "short" in name else "plain"])


Times = list[tuple[float, float]]
"""Seconds of the clock and of the server's processors, of each round."""


def _rounds(requests: dict[str, tuple[Server, Form]], rounds: int) -> dict[str, Times]:
    """One request of each kind after the other in every round, after one of each that isn't counted."""
    connections = {server: server.connection() for server, _ in requests.values()}
    times: dict[str, Times] = {name: [] for name in requests}
    for counted in range(rounds + 1):
        for name, (server, form) in requests.items():
            used, start = server.seconds(), time.perf_counter()
            post(connections[server], form)
            took = time.perf_counter() - start
            if counted:
                times[name].append((took, server.seconds() - used))
    return times


def _check(server: Server, forms: dict[str, Form]) -> None:
    """Every form gives the same codes."""
    connection = server.connection()
    codes = {name: form.read(*post(connection, form)) for name, form in forms.items()}
    for name, found in codes.items():
        if not np.array_equal(found, codes["npy"]):
            raise RuntimeError(f"expected the codes of npy; {name} gives others")


def _ratio_row(array: np.ndarray, name: str, times: Times, base: Times) -> None:
    took = [seconds for seconds, _ in times]
    ratios = [one / own for (one, _), own in zip(base, took, strict=True)]
    cpu, of_base = median(seconds for _, seconds in times), median(seconds for _, seconds in base)
    ms, low, high = (quantile(took, share) * 1e3 for share in (0.5, 0.25, 0.75))
    ratio, least, most = median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75)
    verdict = ""
    if name in TARGETS and array.size == 1_000_000:
        verdict = _verdict(ratio >= TARGETS[name], f"at least {TARGETS[name]}")
    spread, of_ratios = f"({low:.2f} to {high:.2f})", f"({least:.1f} to {most:.1f})"
    print(f"{array.size:>9} {name:18}{ms:9.2f} {spread:19}{ratio:8.1f} {of_ratios:17}", end="")
    print(f"{array.nbytes / ms / 1e3:7.0f}{cpu * 1e3:8.2f}{of_base / cpu:8.1f} {verdict}", flush=True)


def loop(seconds: float = 8.0) -> None:
    """How long GET / takes while others send arrays.

    "Alone" is one client that asks every 2 ms, or later where its last answer is late. "Of many" are requests that come every
    2 ms whatever became of those before them, as those of independent clients do: what blocks the loop hits all of them.
    """
    print(f"\nGET / every 2 ms for {seconds:g} s, ms of one client alone, and of many")
    header = "".join(f"{name:>8}" for name in ("p50", "p95", "p99", "max"))
    print(f"{'meanwhile':32}{header}   {header}   arrays/s")
    large, numbers = array_of(8, 1024, 1024), array_of(500, 1000)
    path = "/instances/default/quantize"
    npy, text, other = binary_forms(large)["npy"], json_form(numbers, path), json_form(numbers, "/quantize")
    with service() as ours:
        _loop_row("nothing", ours, [], seconds)
        # The first row includes the time in which the extra `fast` loads, if it is installed.
        _loop_row("32 MB npy, one client, at first", ours, [npy], seconds, judged=True)
        _loop_row("32 MB npy, one client, later", ours, [npy], seconds, judged=True)
        _loop_row("32 MB npy, two clients", ours, [npy, npy], seconds)
        _loop_row(f"JSON of {len(text.body) / 1e6:.0f} MB, one client", ours, [text], seconds)
    with plain() as theirs:
        _loop_row("nothing, plain", theirs, [], seconds)
        _loop_row(f"JSON of {len(other.body) / 1e6:.0f} MB, plain", theirs, [other], seconds)


def _loop_row(name: str, server: Server, forms: list[Form], seconds: float, *, judged: bool = False) -> None:
    context = multiprocessing.get_context("spawn")
    begins, done = context.Barrier(len(forms) + 1), context.Queue()
    arguments = (begins, 2 * seconds, done)
    clients = [context.Process(target=_post_on, args=(server, form[:3], *arguments)) for form in forms]
    for client in clients:
        client.start()
    begins.wait(60)
    columns = []
    for many in (False, True):
        values = probe(server, seconds, 32 if many else 1)
        columns.append([quantile(values, share) * 1e3 for share in (0.5, 0.95, 0.99, 1.0)])
    rate = sum(done.get(timeout=120) for _ in clients)
    for client in clients:
        client.join()
    texts = ["".join(f"{value:8.1f}" for value in column) for column in columns]
    verdict = _verdict(columns[0][1] < LOOP_TARGET, f"p95 alone < {LOOP_TARGET:g}") if judged else ""
    print(f"{name:32}{texts[0]}   {texts[1]}   {rate:8.1f} {verdict}", flush=True)


def _post_on(server: Server, request: tuple[Any, ...], begins: Any, seconds: float, done: Any) -> None:
    """A client that sends the same array again and again, and tells how many a second."""
    form, connection, count = Form(*request, read=lambda answer, _: np.empty(0)), server.connection(), 0
    post(connection, form)
    begins.wait(60)
    begun = time.perf_counter()
    while time.perf_counter() < begun + seconds:
        post(connection, form)
        count += 1
    done.put(count / (time.perf_counter() - begun))


def probe(server: Server, seconds: float, clients: int, every: float = 0.002) -> list[float]:
    """Seconds that each GET / took.

    Args:
        server: Whom to ask.
        seconds: How long to ask.
        clients: Who take turns; of several, what a late answer delays counts from when it was due.
        every: Seconds between two requests.
    """
    connections = [server.connection() for _ in range(clients)]
    for connection in connections:
        get(connection)
    begun = time.perf_counter()

    def ask(number: int) -> list[float]:
        taken, due = [], begun + number * every
        while due < begun + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            get(connections[number])
            ended = time.perf_counter()
            taken.append(ended - (due if clients > 1 else sent))
            due = max(due + every, ended) if clients == 1 else due + every * clients
        return taken

    with ThreadPoolExecutor(clients) as pool:
        return [value for found in pool.map(ask, range(clients)) for value in found]


def memory(millions: int = 8) -> None:
    """By how much the most memory that a server ever had grows by one request, of a server that has done nothing else."""
    x = array_of(millions, 1024, 1024)
    codes = np.random.default_rng(0).integers(-128, 128, x.shape).astype(np.int8)
    print(f"\nmemory for one request of {x.nbytes / MIB:.0f} MiB of float32, MiB (x of the array)")
    print(f"{'':14}" + "".join(f"{operation:>22}" for operation in OPERATIONS))
    for name in binary_forms(x[:1, :1]):
        growths = [_growth(operation, name, x, codes) for operation in OPERATIONS]
        cells = "".join(f"{g / MIB:14.1f} ({g / x.nbytes:4.2f}x)" for g in growths)
        good = all(g <= MEMORY_TARGET * x.nbytes for g in growths)
        print(f"{name:14}{cells} {_verdict(good, f'at most {MEMORY_TARGET:g}')}", flush=True)
    _json_memory()


def _growth(operation: str, name: str, x: np.ndarray, codes: np.ndarray) -> int:
    def form(count: int) -> Form:
        if operation == "dequantize":
            return binary_forms(codes[:count], operation, scale=0.05, zero_point=3.0)[name]
        return binary_forms(x[:count], operation)[name]

    small, whole = form(0), form(len(x))
    with service() as server:
        return _peak(server, small, whole)


def _peak(server: Server, small: Form, whole: Form) -> int:
    """Growth by a request, after a small one has loaded whatever is loaded when it is first used."""
    connection = server.connection()
    post(connection, small)
    server.forget_peak()
    before = server.memory("VmRSS")
    post(connection, whole)
    return server.memory("VmHWM") - before


def _json_memory() -> None:
    """The same for JSON, as times the bytes of the body: that is what the service estimates by."""
    for operation in OPERATIONS:
        values = array_of(500, 1000) if operation != "dequantize" else np.zeros((2000, 1000), np.int8)
        fields = {"scale": 0.05, "zero_point": 3.0} if operation == "dequantize" else {}
        path = f"/instances/default/{operation}"
        with service() as server:
            whole = json_form(values, path, **fields)
            grown = _peak(server, json_form(values[:1, :1], path, **fields), whole)
        size = len(whole.body)
        print(
            f"JSON of {size / 1e6:.1f} MB, {operation}: {grown / MIB:.1f} MiB, {grown / size:.1f}x the body", flush=True
        )


def _verdict(good: bool, target: str) -> str:
    return f"[{target}: {'met' if good else 'MISSED'}]"


PARTS = {"ratios": ratios, "loop": loop, "memory": memory, "load": load}

if __name__ == "__main__":
    print(machine())
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
