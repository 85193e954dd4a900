"""The quantization service on Ray Serve: ``QI_API_STORE=redis://HOST:6379/0 serve run deploy.ray_serve:app``.

Ray starts the replicas, spreads the requests over them and decides how many there are. They agree because they share a store:
on one machine a SQLite file does, on several it takes Redis or PostgreSQL. Settings come from the environment of the
replicas (`runtime_env` of a Serve configuration on a cluster).
"""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve

from qi.errors import ConfigError
from qi.service.app import create_app
from qi.service.settings import read_settings

REQUESTS_PER_REPLICA = 16


def build() -> FastAPI:
    """The application of one replica.

    Raises:
        ConfigError: Replicas wouldn't see each other's instances.
    """
    # One replica's counters would answer for all; Ray exports metrics of its own for requests and replicas.
    settings = read_settings(metrics=False)
    if settings.store == "memory":
        raise ConfigError("expected a store that replicas can share; received store='memory'; do: set QI_API_STORE")
    return create_app(settings, log=True)


@serve.deployment(
    max_ongoing_requests=REQUESTS_PER_REPLICA,
    max_queued_requests=64,  # more are answered 503 by Ray's proxy
    autoscaling_config={"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": REQUESTS_PER_REPLICA / 4},
    ray_actor_options={"num_cpus": 1},
    graceful_shutdown_timeout_s=30,
)
@serve.ingress(build)
class Quantizers:
    """The service."""


app = Quantizers.bind()
