"""The documents say what is: names, sizes and keys, read out of the things themselves."""

import re
from dataclasses import fields
from pathlib import Path

from device_runtime import bundle, difference, quantize
from device_runtime.home import DeviceConfig
from device_runtime.interpreter import Graph
from device_runtime.typing_log import Retention
from device_runtime.wire import Plan

DOCS = Path(__file__).parents[1] / "docs"


def named(text: str) -> set[str]:
    """Everything a text sets in code."""
    return set(re.findall(r"`([^`\n]+)`", text))


def test_the_bundle_format_names_every_file_key_signature_and_array(tiny_bundle):
    said = named((DOCS / "bundle-format.md").read_text())
    names = {*bundle.FILES, *bundle.OPTIONAL, bundle.MANIFEST, bundle.SIGNATURE, *tiny_bundle.checkpoint.weights}
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
    assert f"Magic `{quantize.MAGIC.decode()}`, version {quantize.VERSION}" in text
    assert f"| {quantize.HEADER_BYTES} - | float32 pairs" in text
    assert f"of each block of {quantize.BLOCK} values" in text
    assert f"Magic `{difference.MAGIC.decode()}`, version {difference.VERSION}" in text
    assert f"| 70 - {difference._HEAD.size - 1} |" in text


def test_the_device_page_names_what_its_owner_may_set():
    text = (DOCS / "device.md").read_text()
    settings = {field.name for kind in (DeviceConfig, Retention) for field in fields(kind)} - {"seed", "trusted", "bundle"}
    assert {name for name in settings if name not in text} == set()
