"""Told to stop."""

from __future__ import annotations

import signal
import socket
import threading

import pytest

from qi.service.stopping import refuse_new, when_told_to_stop


def test_who_waits_is_accepted_and_nobody_else_is() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as waiting,
    ):
        refuse_new(listening)
        try:
            socket.create_connection(listening.getsockname(), timeout=0.3).close()
        except TimeoutError:
            pass
        else:
            pytest.skip("this system can't refuse single packets")
        accepted, _ = listening.accept()
        with accepted:
            waiting.sendall(b"still here")
            assert accepted.recv(100) == b"still here"


def test_what_cannot_be_filtered_is_left() -> None:
    class Stubborn:
        def setsockopt(self, *args: object) -> None:
            raise OSError

    refuse_new(Stubborn())


def test_the_signal_is_told_before_it_is_handled() -> None:
    told: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append("handled"))
    try:
        with when_told_to_stop(lambda: told.append("told")):
            signal.raise_signal(signal.SIGTERM)
        assert told == ["told", "handled"]
        signal.raise_signal(signal.SIGTERM)
        assert told == ["told", "handled", "handled"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with when_told_to_stop(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
