"""The documents say what is: names, sizes and keys, read out of the things themselves."""

import ast
import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from device_runtime import bundle, config, difference, encoding, quantize
from device_runtime.home import DeviceConfig
from device_runtime.interpreter import Graph
from device_runtime.noise import Noise
from device_runtime.typing_log import Retention
from device_runtime.update import HEADER_BYTES, MAGIC, VERSION
from device_runtime.wire import Plan
from fedboard import pages
from server.metrics import Metrics
from server.rounds import Rules
from server.settings import ELSEWHERE, ServerSettings
from tests import toy_server

DOCS = Path(__file__).parents[1] / "docs"
ROOMS_PAGE = (DOCS / "rooms.md").read_text()


def named(text: str) -> set[str]:
    """Everything a text sets in code."""
    return set(re.findall(r"`([^`\n]+)`", text))


def test_the_bundle_format_names_every_file_key_signature_and_array(tiny_bundle):
    said = named((DOCS / "bundle-format.md").read_text())
    names = {
        *bundle.FILES,
        *bundle.OPTIONAL,
        bundle.MANIFEST,
        bundle.SIGNATURE,
        *tiny_bundle.checkpoint.weights,
    }
    for kind in (bundle.Manifest, bundle.Lineage, bundle.File, Plan):
        names |= {field.name for field in fields(kind)}
    for graph in (tiny_bundle.train_graph, tiny_bundle.predict_graph):
        for signature, ends in Graph(graph).signatures.items():
            names |= {signature, *ends["inputs"], *ends["outputs"]}
    words = said | {word for code in said for word in re.findall(r"\w+", code)}
    assert names - words == set()


def test_the_bundle_format_has_the_sizes_and_versions_of_the_code():
    text = (DOCS / "bundle-format.md").read_text()
    assert f"Format {bundle.FORMAT}." in text
    assert f"Magic `{MAGIC.decode()}`, version {VERSION}" in text
    assert f"| {HEADER_BYTES} - | of form 0 |" in text
    assert f"whole blocks of {quantize.BLOCK} values" in text
    assert f"after {encoding.MOST_DRAWS} draws" in text
    assert f"{encoding.SLACK} C sqrt(1 + ({encoding.RANGE:g} / L)^2)" in text
    assert f"Magic `{difference.MAGIC.decode()}`, version {difference.VERSION}" in text
    assert f"| 70 - {difference._HEAD.size - 1} |" in text


def test_the_server_s_configuration_file_shows_every_setting_with_its_default():
    path = DOCS.parent / "configs" / "server.toml"
    assert config.from_toml(ServerSettings, path) == ServerSettings()
    text = path.read_text()
    for setting in fields(ServerSettings):
        if setting.name in ELSEWHERE:
            assert f"\n{setting.name} =" not in text
            continue
        default = getattr(ServerSettings(), setting.name)
        if is_dataclass(default):
            section, names = text.partition(f"[{setting.name}]")[2], fields(default)
        else:
            section, names = text, (setting,)
        if setting.name == "noise":  # there is none unless it is asked for
            section, names = text.partition("\n# [noise]")[2], fields(Noise)
        section = section.partition("\n[")[0]
        shown = [each.name for each in names if re.search(rf"\b{each.name} =", section)]
        assert shown == [each.name for each in names]


def test_the_operations_page_names_metrics_that_are_there(tmp_path):
    coordinator = toy_server.new(tmp_path, Rules())
    text = Metrics(coordinator, lambda: 1.0).text().decode()
    coordinator.close()
    named_there = set(re.findall(r"fedboard_\w+", (DOCS / "operations.md").read_text()))
    assert {
        name
        for name in named_there
        if name.removesuffix("_bucket").removesuffix("_total") not in text
    } == set()


def test_the_device_page_names_what_its_owner_may_set():
    text = (DOCS / "device.md").read_text()
    settings = {field.name for kind in (DeviceConfig, Retention) for field in fields(kind)} - {
        "seed",
        "trusted",
        "bundle",
    }
    assert {name for name in settings if name not in text} == set()


@pytest.mark.parametrize("name", ["commands.md", "rooms.md"])
def test_a_page_the_program_writes_says_what_the_program_says_now(name):
    assert (DOCS / name).read_text() == pages.pages()[name], "run make pages"


def test_the_page_of_commands_depends_on_no_terminal():
    code = "from fedboard import pages; print(pages.commands_page(pages.application()), end='')"
    narrow = {**os.environ, "COLUMNS": "20", "FORCE_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=narrow, capture_output=True, text=True, check=True
    )
    assert done.stdout == (DOCS / "commands.md").read_text()


def test_the_page_of_rooms_names_every_file_with_its_sentence_and_no_other():
    rows = re.findall(r"^## (\w+)$|^\| `([\w/.]+)` \| (.*) \|$", ROOMS_PAGE, flags=re.MULTILINE)
    room, sentences = "", {}
    for heading, file, sentence in rows:
        room = heading or room
        if file:
            sentences[f"{room}/{file}"] = sentence
    files = {
        str(path.relative_to(DOCS.parent))
        for room in pages.ROOMS
        for path in (DOCS.parent / room).rglob("*.py")
        if path.read_text()
    }
    assert sentences.keys() == files
    assert [file for file, sentence in sentences.items() if len(sentence) < 10] == []


def our_modules() -> list[Path]:
    folders = (*pages.ROOMS, "benchmarks", "fuzz", "tests")
    return [path for folder in folders for path in pages.modules(DOCS.parent, folder)]


def test_the_first_sentence_of_every_module_ends_on_its_first_line():
    runs_on = [
        str(path.relative_to(DOCS.parent))
        for path in our_modules()
        if (text := ast.get_docstring(ast.parse(path.read_text())))
        and pages.first_sentence(text) != re.split(r"(?<=[.?!]) ", text.splitlines()[0])[0]
    ]
    assert runs_on == []


def test_installing_by_pip_says_so_where_pip_by_itself_would_refuse_a_package():
    text = (DOCS.parent / "requirements.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+)==", text, flags=re.MULTILINE))
    refused = []
    for package in pinned:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wanted = importlib.metadata.metadata(package).get("Requires-Python")
            if wanted and platform.python_version() not in SpecifierSet(wanted):
                refused.append(package)
    command = (DOCS / "install.md").read_text().partition("pip install")[2].partition("\n")[0]
    assert ("--ignore-requires-python" in command) == bool(refused)
    assert "--no-deps" in command


def test_links_of_the_documents_lead_somewhere():
    for page in (*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links {link}"


def test_test_files_that_the_documents_name_are_there():
    named = {
        name
        for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md")
        for name in re.findall(r"`(?:tests/)?(test_\w+\.py)", page.read_text())
    }
    assert len(named) > 10
    assert {name for name in named if not (DOCS.parent / "tests" / name).is_file()} == set()


def test_whoever_reads_the_first_page_finds_the_helper_and_what_is_private():
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", (DOCS.parent / "README.md").read_text()))
    assert linked >= {"helper.md", "privacy.md"}
