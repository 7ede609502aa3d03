"""The container's files say again what other files say: they must not drift apart. (Building the
image needs a Docker engine.)
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_image_is_built_with_the_uv_of_the_makefile():
    versions = {
        re.search(r"UV_VERSION *\??= *([\d.]+)", text)[1]
        for text in (DOCKERFILE, (ROOT / "Makefile").read_text())
    }
    assert len(versions) == 1


def test_the_image_gets_every_package_of_the_project_and_nothing_that_is_not_there():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]["packages"]
    copied = {
        name
        for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M)
        for name in line.split()
    }
    admitted = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert set(packages) <= copied == admitted
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_a_file_of_secrets_is_neither_committed_nor_sent_to_the_builder():
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    secrets = re.findall(
        r"(\w*(?:PASSWORD|TOKEN|KEY|KEY_ID)): (.+)", (ROOT / "compose.yaml").read_text()
    )
    assert len(secrets) == 7
    assert [name for name, value in secrets if not value.startswith("${")] == []
