"""Which test is which: what needs TensorFlow, what is quick, what is a proof, who runs what.

Marks are given by rule, when the tests are collected:

    tensorflow   needs TensorFlow or TFF: in the test's process or in one that it starts
    process      starts servers, commands or browsers, or takes more than a moment
    prove        beyond half a minute each; runs when asked for by name, `make prove`
    property     a property that hypothesis tests with examples of its own
    quick        all the others: `make test ARGS="-m quick"`

A quick test runs with TensorFlow out of reach, so that one which needs it fails wherever it runs.
With several workers (`pytest -n 2`, as `make test` does) a file's tests go to one worker, so that
what a file starts is started once; and all that load TensorFlow go to the same one, for loading it
takes longer than most of them.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

from tests import prove_page

# files whose tests load TensorFlow into the process of the tests
LOADING = (
    "test_model_simulation",
    "test_model_worker",
    "test_model_aggregators",
    "test_model_tff_corpora",
    "test_model_central",
    "test_conversion",
    "test_conversion_gate",
    "test_conversion_metadata",
    "test_conversion_patch",
    "test_server_steps",
    "test_model_executor",
    "test_model_memory",
    "test_doctests_tensorflow",
    "test_fedboard_states",
)
# files whose tests start processes that load it
STARTING = ("test_fedboard_train", "test_path", "test_fedboard_doctor", "test_model_enclosure")
# files whose tests start other processes, or take long for another reason
PROCESSES = (
    "test_fedboard_privacy",
    "test_fedboard_fleet",
    "test_fleet_saved",
    "test_fedboard_release",
    "test_server_kills",
    "test_server_noise",
    "test_server_noise_kills",
    "test_server_upgrade_accounted",
    "test_server_secagg_kills",
    "test_server_opening",
    "test_server_opening_kills",
    "test_fedboard_cli",
    "test_fedboard_streams",
    "test_fedboard_device_day",
    "test_device_runtime_kills",
    "test_device_runtime_secagg_turn",
    "test_device_runtime_masked",
    "test_server_replicas",
    "test_helper_kills",
    "test_helper_noise_kills",
    "test_helper_noise_proof",
    "test_helper_endpoint",
    "test_fedboard_helper",
    "test_server_masks",
    "test_server_secagg_steps",
    "test_server_disk",
    "test_server_endpoint",
    "test_fleet_doors",
    "test_fleet_soak",
    "test_fleet_keys",
    "test_fleet_servers",
    "test_fedboard_serve",
    "test_fedboard_beside",
    "test_fedboard_device_words",
    "test_fedboard_device_upgrade",
    "test_fedboard_device_log",
    "test_fedboard_terminal_keyboard",
    "test_fedboard_keyboard_command",
    "test_server_doors",
    "test_server_identity",
    "test_server_releases",
    "test_fedboard_releases",
    "test_fedboard_fleet_report",
    "test_fleet_measured",
    "test_device_runtime_hostile_server",
    "test_server_connections",
    "test_server_blobs",
    "test_server_dashboard",
    "test_bundles_reference",
    "test_kill_points",
    "test_device_runtime_typing_log",
    "test_benchmarks",
    "test_benchmarks_fleet_studies",
    "test_benchmarks_scan",
    "test_fedboard_audit",
    "test_conversion_classes",
    "test_fleet_engines",
    "test_fleet_ray",
    "test_fleet_drop_out",
    "test_fedboard_population",
)
# what a fixture costs, it costs all that use it
FIXTURES = {"chitchat": "process"}
# begun first, the longest first: what is begun last should be short
ORDER = ("test_fedboard_train", *LOADING, "test_path", *PROCESSES)
# a Python other than that of training has none
INSTALLED = importlib.util.find_spec("tensorflow") is not None
WITHOUT_TENSORFLOW = "fedboard: TensorFlow is not installed: the tests that need it were left out"
MARKS = {
    "tensorflow": "needs TensorFlow or TFF",
    "process": "starts servers, commands or browsers, or takes more than a moment",
    "prove": "beyond half a minute; runs only when it is asked for by this name",
    "property": "hypothesis makes its examples",
    "quick": "none of the first three: under a minute together, with TensorFlow out of reach",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--page", type=Path, help="write there which proofs held")
    parser.addoption("--examples-times", type=int, default=1, help="times a property's examples")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.page and not hasattr(config, "workerinput"):
        config.pluginmanager.register(prove_page.Page(config.option.page))
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Reading some of the files loads TensorFlow: not if none of their tests can be wanted, nor
    where there is none to load.
    """
    if collection_path.stem not in LOADING:
        return None
    return True if leaves_out_tensorflow(config.option.markexpr) or not INSTALLED else None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say once what was left out that was asked for."""
    if not INSTALLED and not leaves_out_tensorflow(config.option.markexpr):
        terminalreporter.write_line(WITHOUT_TENSORFLOW)


def leaves_out_tensorflow(asked: str) -> bool:
    """Whether a mark expression can want no test that loads TensorFlow: not, surely, unless it is
    `quick`, `not tensorflow`, or one of them `and` more.

    >>> leaves_out_tensorflow("quick and not property"), leaves_out_tensorflow("quick or process")
    (True, False)
    """
    if re.search(r"\bor\b|[()]", asked):
        return False
    parts = [" ".join(part.split()) for part in re.split(r"\band\b", asked)]
    return "quick" in parts or "not tensorflow" in parts


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name in sorted(marks(item.path.stem, frozenset(getattr(item, "fixturenames", ())))):
            item.add_marker(name)
        if hypothesis.is_hypothesis_test(getattr(item, "function", None)):  # a doctest has none
            item.add_marker("property")
        if not any(item.get_closest_marker(name) for name in ("tensorflow", "process", "prove")):
            item.add_marker("quick")
    for function in {item.function for item in items if item.get_closest_marker("property")}:
        more_examples(function, config.option.examples_times)
    if "prove" not in config.option.markexpr:
        leave_out("prove", config, items)
    if not INSTALLED:
        leave_out("tensorflow", config, items)
    if hasattr(config, "workerinput"):  # of pytest-xdist
        items.sort(key=lambda item: place(item.path.stem))


def leave_out(mark: str, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests with this mark off the list."""
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(mark)])
    items[:] = [item for item in items if not item.get_closest_marker(mark)]


def more_examples(function: Callable, times: int) -> None:
    """Let hypothesis try this many times the examples that the function asks for."""
    settings = function._hypothesis_internal_use_settings  # it has no name for this outside
    function._hypothesis_internal_use_settings = hypothesis.settings(
        settings, max_examples=settings.max_examples * times
    )


def strides(some: int) -> pytest.MarkDecorator:
    """A test that kills takes `stride`: it kills at one step of so many, and as a proof at each."""
    each = pytest.param(1, id="each step", marks=[pytest.mark.prove, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("stride", [pytest.param(some, id="some steps"), each])


def marks(file: str, fixtures: frozenset[str]) -> set[str]:
    """What the rules say of a test in this file that uses these fixtures."""
    needs = {mark for name, mark in FIXTURES.items() if name in fixtures}
    if file in LOADING or file in STARTING:
        needs.add("tensorflow")
    if file in PROCESSES:
        needs.add("process")
    return needs


def place(file: str) -> int:
    """Where a file stands in the order in which files are begun."""
    return ORDER.index(file) if file in ORDER else len(ORDER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not item.get_closest_marker("quick"):
        return (yield)
    with out_of_reach("tensorflow", "tensorflow_federated"):
        return (yield)


@contextmanager
def out_of_reach(*packages: str) -> Iterator[None]:
    """In the block these packages cannot be imported."""
    absent = object()
    before = {name: sys.modules.get(name, absent) for name in packages}
    sys.modules.update(dict.fromkeys(packages))  # a module that is None cannot be imported
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not absent:
                sys.modules[name] = module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Share tests out by file, in the order the workers collected them."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "tensorflow" if Path(path).stem in LOADING else path

    config.option.loadscopereorder = False
    return ByFile(config, log)
