"""Several processes at one socket, watched by uvicorn's supervisor."""

from __future__ import annotations

import socket

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from qi.errors import ConfigError
from qi.service.metrics import forget_process
from qi.service.stopping import StoppingServer

__all__ = ["Workers"]


class _Worker(Process):
    """A process whose server stops as `qi.service.stopping` tells."""

    delay = 0.0

    @property
    def server(self) -> uvicorn.Server:
        """The server, made where it runs."""
        if self._server is None:
            self._server = StoppingServer(self.config, self.delay)
        return self._server


class Workers(Multiprocess):
    """The supervisor.

    Args:
        config: What uvicorn is told; its application is a name, as every process makes its own.
        sockets: Where they listen.
        delay: See `StoppingServer`.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], delay: float) -> None:
        super().__init__(config, sockets)
        self._delay = delay

    def init_processes(self) -> None:
        """Starts them."""
        self.processes = [self._start() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        """Puts others in the place of those that died.

        Raises:
            ConfigError: One couldn't even start; the next wouldn't either.
        """
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set() or process.is_alive(timeout=self.config.timeout_worker_healthcheck):
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:
                del self.processes[index]
                self.terminate_all()
                self.join_all()
                raise ConfigError("expected workers that start; one didn't, and its log says why")
            if process.pid is not None:
                forget_process(process.pid)
            self.processes[index] = self._start()

    def terminate_all(self) -> None:
        """Tells them to stop; nobody waits at this process' own copy of the socket."""
        for shared in self.sockets:
            shared.close()
        super().terminate_all()

    def handle_hup(self) -> None:
        """Nothing: new settings need a new start."""

    def handle_ttin(self) -> None:
        """Nothing: the number of processes is the operator's word."""

    def handle_ttou(self) -> None:
        """Nothing, as well."""

    def _start(self) -> Process:
        worker = _Worker(self.config, self.sockets)
        worker.delay = self._delay
        worker.start()
        return worker
