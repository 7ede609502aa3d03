"""The import table of the rooms: who may import whom, and what must never be loaded where."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("device_runtime", "model", "server", "helper", "conversion", "fleet", "fedboard")
CONTRACTS = {
    "accountant",
    "addresses",
    "bounds",
    "causes",
    "chain",
    "codes",
    "config",
    "counts",
    "difference",
    "durable",
    "encoding",
    "enrolments",
    "errors",
    "exposure",
    "helper_wire",
    "limits",
    "log_wire",
    "masking",
    "merkle",
    "neighbours",
    "noise",
    "optimizers",
    "packing",
    "patch",
    "quantize",
    "releases",
    "scores",
    "secagg",
    "secagg_wire",
    "separation",
    "shamir",
    "shown",
    "signing",
    "strategy",
    "table",
    "terms",
    "text",
    "update",
    "versions",
    "weights",
    "wire",
}
ALLOWED = {
    "device_runtime": {},
    # a bundle says the same of privacy; a server calls its helper as a device calls a server
    "server": {"device_runtime": CONTRACTS | {"bundle", "transport"}},
    "model": {
        "device_runtime": CONTRACTS
        | {"examples", "folder", "limits", "metrics", "offensive", "pieced"}
    },
    "conversion": {"device_runtime": None, "model": None},
    # another party's process: of the server's only what any web service with a database needs, and
    # nothing that knows of tasks or rounds
    "helper": {
        "device_runtime": CONTRACTS,
        "server": {
            "access",
            "bodies",
            "connections",
            "disk",
            "lists",
            "logs",
            "memory",
            "noising",
            "requests",
            "settings",
            "slots",
        },
    },
    "fleet": {"device_runtime": None, "server": None, "helper": None},
    "fedboard": dict.fromkeys(ROOMS),
}
OUTSIDE = {  # packages that only some files of a room may import
    "tensorflow": {
        *(
            f"model/{name}.py"
            for name in (
                "training",
                "packed",
                "central",
                "simulation",
                "aggregators",
                "tff_corpora",
            )
        ),
        *(f"conversion/{name}.py" for name in ("constants", "export", "metadata", "parity")),
    },
    "tensorflow_federated": {
        *(
            f"model/{name}.py"
            for name in (
                "central",
                "simulation",
                "aggregators",
                "executor",
                "worker",
                "tff_corpora",
            )
        ),
        "fedboard/saved.py",
    },
    "tflite_runtime": {"device_runtime/interpreter.py"},
    "ai_edge_litert": {"device_runtime/interpreter.py"},
    "sentencepiece": {"device_runtime/text.py", "model/vocabulary.py"},
    "fastapi": {"server/endpoint.py", "server/openapi.py"},
    "sqlalchemy": {
        "helper/store.py",
        "helper/tables.py",
        "server/lists.py",
        "server/log_rows.py",
        "server/release_rows.py",
        "server/score_rows.py",
        "server/seal_rows.py",
        "server/secagg_rows.py",
        "server/spending_rows.py",
        "server/store.py",
        "server/tables.py",
        *(
            f"server/migrations/versions/{name}.py"
            for name in (
                "0001_first_tables",
                "0002_tasks",
                "0003_strangers",
                "0004_releases",
                "0005_private",
                "0006_accounted",
            )
        ),
    },
    "obstore": {"server/blobs.py"},
    "ray": {"fleet/on_ray.py"},
    "keyring": {"device_runtime/keystore.py"},
}


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module a file names in an import, `from a import b` as a.b. Each file is read once."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_rooms_below_it(room):
    for path in files(room):
        for module in imports(path):
            other, _, rest = module.partition(".")
            if other not in ROOMS or other == room:
                continue
            assert other in ALLOWED[room], f"{path.relative_to(ROOT)} imports {module}"
            modules = ALLOWED[room][other]
            assert modules is None or rest.split(".")[0] in modules, (
                f"{path.relative_to(ROOT)} imports {module}"
            )


@pytest.mark.parametrize("package", OUTSIDE)
def test_heavy_packages_are_imported_where_the_table_says(package):
    users = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in files(room)
        if package in {name.split(".")[0] for name in imports(path)}
    }
    assert users <= OUTSIDE[package] | {"fedboard/doctor.py"}


def test_only_a_mechanism_adds_updates_up_and_divides_them():
    """A masked or a noised sum stands beside the plain one; the others know what travels."""
    users = {
        path.name
        for path in files("server")
        if {name for name in imports(path) if name.startswith("server.sums")}
        - {"server.sums.Checked", "server.sums.Sum", "server.sums.Weighted"}
        or "server.sums" in imports(path)
    }
    assert users == {"mechanism.py"}


def test_init_files_are_empty():
    assert [
        path
        for room in ROOMS
        for path in files(room)
        if path.name == "__init__.py" and path.read_text()
    ] == []


DEVICE = "import device_runtime.drive, device_runtime.predictor, device_runtime.finetune"
HELP = (
    "import sys; sys.argv = ['fedboard', '--help']; import fedboard.cli; "
    "fedboard.cli.app(standalone_mode=False)"
)
EVALUATE = "import fedboard.score, conversion.scoring"


@pytest.mark.parametrize("code", [DEVICE, HELP, EVALUATE], ids=["device", "help", "evaluate"])
def test_neither_tensorflow_nor_a_web_framework_is_loaded(code):
    check = (
        "import sys; loaded = {'tensorflow', 'tensorflow_federated', 'fastapi', 'sqlalchemy'} & "
        "set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


# a process in which nothing but the `device` extra can be imported; pydantic comes with typer
ONLY_A_DEVICE = """
import sys
from fedboard.cli import EXTRAS
for extra in EXTRAS.keys() - {"device", "litert"}:
    sys.modules |= dict.fromkeys(set(EXTRAS[extra]) - {"pydantic"})
"""
# what `fedboard task create --config` does before it asks the server
CREATE = """
from pathlib import Path
import fedboard.task_commands, fedboard.operator, fedboard.run
from device_runtime.config import from_toml, to_json
from server.settings import ServerSettings
from server.task import settings_of
to_json(settings_of(from_toml(ServerSettings, Path("configs/server.toml"))))
"""


@pytest.mark.parametrize("code", ["import fedboard.operator", CREATE], ids=["client", "create"])
def test_an_operator_s_client_runs_where_no_package_of_a_server_is_installed(code):
    done = subprocess.run(
        [sys.executable, "-c", ONLY_A_DEVICE + code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_devices_run_where_tensorflow_cannot_be_imported():
    code = (
        f"from fedboard.devices import block_tensorflow; block_tensorflow(); {DEVICE}\nimport "
        "tensorflow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "import of tensorflow halted" in done.stderr
