"""The files of `deploy/` say what the service is."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from qi.service.auth import PROBES
from qi.service.settings import Settings

yaml = pytest.importorskip("yaml")

FRAMEWORKS = {"tensorflow", "keras"}
EXTRAS = ("service", "safetensors", "redis", "postgres")
VARIABLES = {f"QI_API_{name.upper()}" for name in Settings.model_fields} | {"QI_API_KEYS"}


@pytest.fixture(scope="module")
def folder(checkout: Path) -> Path:
    return checkout / "deploy"


@pytest.fixture(scope="module")
def dockerfile(folder: Path) -> list[tuple[str, str]]:
    """The instructions, each with its text."""
    text = re.sub(r"(?m)^#.*\n", "", (folder / "Dockerfile").read_text()).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    """The objects by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((folder / "kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    assert len(pod["containers"]) == 1
    return pod["containers"][0]


def lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")}


def test_the_image_holds_what_the_service_needs_and_no_framework(checkout: Path, folder: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(checkout / "setup.cfg")
    base = {
        line for line in lines(setup["options"]["install_requires"]) if re.split("[<>=]", line)[0] not in FRAMEWORKS
    }
    extras = set().union(*(lines(setup["options.extras_require"][extra]) for extra in EXTRAS))
    assert lines((folder / "requirements.txt").read_text()) == base | extras | {"httptools"}


def test_the_image_runs_as_nobody_and_tells_how_it_is(dockerfile: list[tuple[str, str]]) -> None:
    words = [word for word, _ in dockerfile]
    final = dockerfile[len(words) - 1 - words[::-1].index("FROM") :]
    told = dict(final)
    assert told["USER"] == "10001:10001"
    assert re.search(r"useradd --uid 10001\b", told["RUN"])
    assert told["CMD"] == '["qi", "serve"]'
    assert told["EXPOSE"] == "8000"
    variables = dict(part.split("=", 1) for part in shlex.split(told["ENV"]))
    assert {name for name in variables if name.startswith("QI_")} <= VARIABLES
    assert Settings(
        host=variables["QI_API_HOST"], port=variables["QI_API_PORT"], log=variables["QI_API_LOG"]
    ).port == int(told["EXPOSE"])
    assert variables["QI_API_STORE"].startswith(f"sqlite:///{told['VOLUME']}/")
    path = re.search(r"\{os.environ\['QI_API_PORT'\]\}(/\w+)", told["HEALTHCHECK"])
    assert path
    assert path[1] in PROBES


def test_the_image_is_made_of_files_that_are_there(
    checkout: Path, folder: Path, dockerfile: list[tuple[str, str]]
) -> None:
    copied = [rest.split()[:-1] for word, rest in dockerfile if word == "COPY" and not rest.startswith("--from")]
    names = {name for part in copied for name in part}
    assert all((checkout / name).exists() for name in names)
    assert names == {line[1:] for line in lines((folder / "Dockerfile.dockerignore").read_text()) if line[0] == "!"}


def test_probes_ask_what_needs_no_key(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in PROBES
        assert asked["port"] in ports
    assert container["readinessProbe"]["httpGet"]["path"] != container["livenessProbe"]["httpGet"]["path"]
    assert ports["http"] == int(variables(container)["QI_API_PORT"])


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def test_settings_are_settings_and_secrets_are_secrets(
    container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {entry["name"] for entry in container["env"] if "secretKeyRef" in entry.get("valueFrom", {})}
    assert secret == {"QI_API_KEYS", "QI_API_STORE"}
    assert {entry["name"] for entry in container["env"]} <= VARIABLES
    for name, value in variables(container).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    cores = int(container["resources"]["limits"]["cpu"])
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert settings.threads == cores
    assert settings.memory_budget <= memory * 3 / 4
    assert "qi-service" in settings.allowed_hosts


def test_the_end_has_time_for_every_step(pod: dict[str, Any], container: dict[str, Any]) -> None:
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    told = variables(container)
    needed = waits + float(told["QI_API_SHUTDOWN_DELAY"]) + float(told["QI_API_GRACE"])
    assert needed < pod["terminationGracePeriodSeconds"]


def test_the_pod_may_do_nothing_that_it_does_not_need(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp"}


def test_the_objects_mean_the_same_pods(manifest: dict[str, Any]) -> None:
    assert set(manifest) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifest["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["Service"]["spec"]["selector"] == labels
    assert manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaled = manifest["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == manifest["Deployment"]["metadata"]["name"]
    assert "replicas" not in manifest["Deployment"]["spec"]
    assert scaled["minReplicas"] > manifest["PodDisruptionBudget"]["spec"]["minAvailable"]
    assert scaled["metrics"][0]["resource"]["name"] == "cpu"
