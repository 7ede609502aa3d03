"""`fedboard words ...`: the user's own words on this device: seen, forgotten, barred, moved."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from device_runtime.errors import RunError
from device_runtime.shown import printable
from fedboard import console
from fedboard.options import Json, emit

app = typer.Typer(
    no_args_is_help=True,
    help="The user's own words on a device: what was learned, and what is never offered.",
)

HomeFolder = Annotated[Path, typer.Argument(metavar="HOME", help="Folder of the device.")]
Word = Annotated[
    str | None,
    typer.Argument(help="The word; without it, it is asked for and stays out of the history."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Remove = Annotated[bool, typer.Option("--remove", help="Take the word off the list instead.")]
Passphrase = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", help="File with the passphrase, one line; without it, it is asked for."
    ),
]


@app.command("list")
def words_list(folder: HomeFolder, as_json: Json = False) -> None:
    """What was learned: words of your own that the strip offers, and your lists.

    They are shown on this terminal, and leave it only where you send them.
    """
    from device_runtime import words
    from device_runtime.home import Home
    from device_runtime.keyboard import newest
    from device_runtime.own_words import OwnWords, Trust

    home = Home.open(folder)
    lists, vocabulary = words.read(home), home.bundle().vocabulary
    own = OwnWords(vocabulary, Trust(), lists.allowed)
    with home.typing_log() as log:
        for message, tokens in newest(log):
            own.add_message(message, tokens)
    offered = [
        {"word": own.written(token) or token, "typed": times}
        for token, times in sorted(own.offered(), key=lambda each: (-each[1], each[0]))
        if not lists.barred(token)
    ]
    if as_json:
        return emit({"words": offered, **asdict(lists)})
    for each in offered:
        console.say(f"{printable(str(each['word']))}  typed {each['typed']:,} times")
    if not offered:
        console.say("no word of your own is offered yet: a word is, once two messages had it")
    for title, listed in (("never offered", lists.never), ("always allowed", lists.allow)):
        if listed:
            console.say(f"{title}: {', '.join(map(printable, listed))}")


@app.command("forget")
def words_forget(
    folder: HomeFolder, word: Word = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Take a word out of everything that was typed, and out of what was learned from it.

    The messages stay, with the word blanked out. Open keyboards notice at the next key. A word that
    is never to be offered stays on that list, sealed: take it off with `words never --remove`.
    """
    from device_runtime import words
    from device_runtime.home import Home

    home = Home.open(folder)
    word = words.require_word(_asked(word, "Word to forget"))
    if not yes:
        typer.confirm(f"Forget it in {printable(str(folder))}?", abort=True, err=True)
    changed = home.forget_word(word)
    lists = words.read(home)
    if lists.allow and (left := words.without(lists, word)).allow != lists.allow:
        words.keep(home, words.Lists(lists.never, left.allow))
    if as_json:
        return emit({"messages": changed})
    console.say(f"forgotten: it stood in {changed:,} messages; what was learned is learned anew")


@app.command("never")
def words_never(
    folder: HomeFolder, word: Word = None, remove: Remove = False, as_json: Json = False
) -> None:
    """Never offer a word again, whoever knows it: the network, your messages, a later release."""
    from device_runtime import words

    _listed(folder, word, words.without if remove else words.with_never, as_json)


@app.command("allow")
def words_allow(
    folder: HomeFolder, word: Word = None, remove: Remove = False, as_json: Json = False
) -> None:
    """Offer a word whatever it looks like, and whatever list of the bundle has it."""
    from device_runtime import words

    _listed(folder, word, words.without if remove else words.with_allowed, as_json)


@app.command("export")
def words_export(
    folder: HomeFolder,
    file: Annotated[Path, typer.Argument(help="File to write; it must not be there yet.")],
    passphrase_file: Passphrase = None,
    as_json: Json = False,
) -> None:
    """Write what was learned to one file, sealed under a passphrase, for a new phone.

    It holds the messages and your lists; no key and nothing that was agreed with a server.
    """
    from device_runtime import moved
    from device_runtime.home import Home

    home = Home.open(folder)
    learned = moved.export(home, file, _passphrase(passphrase_file, confirm=True))
    if as_json:
        return emit({"messages": len(learned.messages), "bytes": file.stat().st_size})
    console.say(
        f"{len(learned.messages):,} messages in {file}, {file.stat().st_size:,} bytes; without the "
        "passphrase nobody can read it, you neither"
    )


@app.command("import")
def words_import(
    folder: HomeFolder,
    file: Annotated[Path, typer.Argument(help="What `fedboard words export` wrote.")],
    passphrase_file: Passphrase = None,
    as_json: Json = False,
) -> None:
    """Add what another phone learned: each message and each word once.

    What is added teaches the strip; no update of this device is trained on it.
    """
    from device_runtime import moved
    from device_runtime.home import Home

    home = Home.open(folder)
    taken = moved.take(home, file, _passphrase(passphrase_file, confirm=False))
    if as_json:
        return emit(asdict(taken))
    console.say(
        f"{taken.messages:,} messages added, {taken.never:,} words never to offer, "
        f"{taken.allow:,} allowed"
    )


def _listed(folder: Path, word: str | None, change, as_json: bool) -> None:
    from device_runtime import words
    from device_runtime.home import Home

    home = Home.open(folder)
    lists = change(words.read(home), words.require_word(_asked(word, "Word")))
    words.keep(home, lists)
    if as_json:
        return emit(asdict(lists))
    console.say(f"{len(lists.never):,} words never offered, {len(lists.allow):,} always allowed")


def _asked(word: str | None, question: str) -> str:
    return typer.prompt(question, err=True) if word is None else word


def _passphrase(file: Path | None, confirm: bool) -> str:
    if file is None:
        return typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    try:
        return file.read_text("utf-8").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        raise RunError(
            file, "expected a passphrase in its first line, found none", "write one there"
        ) from None
