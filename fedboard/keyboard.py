"""The keyboard on the command line: suggestions for one text, or for each line read from standard input."""

from collections.abc import Iterable

from device_runtime.predictor import Predictor, Suggestion
from fedboard import console

HELP = "Type a line: it ends in a space -> next words; in letters -> completions. 1, 2 or 3 accepts a suggestion, an empty line starts anew."


def split(typed: str) -> tuple[str, str]:
    """What was typed as context and the word being typed, which is empty after a space.

    >>> split("i will s")
    ('i will ', 's')
    """
    start = len(typed)
    while start > 0 and (typed[start - 1].isalnum() or typed[start - 1] in "'’"):
        start -= 1
    return typed[:start], typed[start:]


def accept(typed: str, word: str) -> str:
    """The text after a suggestion was taken: it replaces the word being typed, a space follows."""
    return split(typed)[0] + word + " "


def show(suggestions: list[Suggestion]) -> str:
    """`1 you 12.3 %   2 it 8.0 %   3 the 4.1 %`."""
    return "   ".join(f"[bold]{i} {s.word}[/] {s.probability:.1%}" for i, s in enumerate(suggestions, 1)) or "(no word of the vocabulary)"


def converse(predictor: Predictor, lines: Iterable[str]) -> None:
    """A small keyboard: prints the strip after each line."""
    typed = ""
    strip = predictor.suggest("")
    console.say(show(strip))
    for line in (line.rstrip("\r\n") for line in lines):
        chosen = int(line) if line in ("1", "2", "3") else 0
        typed = accept(typed, strip[chosen - 1].word) if 0 < chosen <= len(strip) else line
        strip = predictor.suggest(*split(typed))
        console.say(f"[dim]{typed}|[/]  {show(strip)}")
