"""Pages the program writes of itself: its commands, and its rooms with one line a file.

`make pages` writes docs/commands.md and docs/rooms.md; a test fails where a page says
something else than the program does.
"""

import ast
import enum
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

ROOMS = ("device_runtime", "model", "server", "helper", "conversion", "fleet", "fedboard")
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS_HEAD = """# Commands

Written by `make pages` out of the application itself. `fedboard COMMAND --help` says
the same. Bad input gives one line that says where, what was expected and found, and what to do, and
an exit code that is not 0; `--json`, where there is one, prints one JSON object and nothing else.
"""
ROOMS_HEAD = """# Rooms

Written by `make pages` out of the first sentence of each file. A room imports only
from the rooms below it, as `tests/test_imports.py` says.
"""


def walk(command: Any, path: tuple[str, ...] = ("fedboard",)) -> Iterator[tuple[str, Any]]:
    """Every command and group under one, itself first: its full name and the command."""
    yield " ".join(path), command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


def application() -> Any:
    """The command line as a tree, as `walk` takes it."""
    from fedboard.cli import app

    return typer.main.get_command(app)


def commands_page(command: Any) -> str:
    """docs/commands.md of an application: what each command does, its arguments and options.

    Reads nothing but the tree, so that neither a terminal's width nor its colours change the page.
    """
    runnable = [(name, each) for name, each in walk(command) if not hasattr(each, "commands")]
    index = [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(first_sentence(each.help or ''))} |"
        for name, each in runnable
    ]
    parts = [COMMANDS_HEAD, "| command | what it does |\n|---|---|\n" + "\n".join(index) + "\n"]
    return "\n".join([*parts, *(_section(name, each) for name, each in runnable)])


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each
        for each in command.params
        if each.param_type_name == "option" and not each.hidden and each.name != "help"
    ]
    usage = " ".join([name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    rows = [f"| `{_argument(each)}` | {_cell(each.help or '')} | |" for each in arguments]
    rows += [
        f"| {_flags(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in options
    ]
    table = "|  |  | by default |\n|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    return f"## {name}\n\n    {usage}\n\n{(command.help or '').strip()}\n\n{table}"


def _argument(argument: Any) -> str:
    """`FILE`, in brackets where it may be left out, with dots where there may be many."""
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default.value if isinstance(option.default, enum.Enum) else option.default
    if value is None or value == [] or value == "" or isinstance(value, bool):
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    """Text as a cell of a table: one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def rooms_page(root: Path) -> str:
    """docs/rooms.md of a checkout: the first sentence of every module of all rooms."""
    parts = [ROOMS_HEAD]
    for room in ROOMS:
        lines = [
            f"| `{path.relative_to(root / room)}` | {_cell(first_sentence(_docstring(path)))} |"
            for path in modules(root, room)
        ]
        parts.append(f"## {room}\n\n| file | what it decides |\n|---|---|\n" + "\n".join(lines))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def modules(root: Path, room: str) -> list[Path]:
    """The files of a room in alphabetical order, without those that only make a package."""
    paths = sorted((root / room).rglob("*.py"))
    return [path for path in paths if path.name != "__init__.py"]


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line.

    >>> first_sentence("A room: a folder\\nof files. More of it.\\n\\nAnd more.")
    'A room: a folder of files.'
    """
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) ", paragraph)[0]


def pages(root: Path = ROOT) -> dict[str, str]:
    """Each page's name under docs/, and what it must say now."""
    return {"commands.md": commands_page(application()), "rooms.md": rooms_page(root)}


def main() -> None:
    """Write the pages into docs/."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
