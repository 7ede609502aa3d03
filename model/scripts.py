"""Scripts: how much of a text is written without spaces between words, and what to do about it."""

from collections.abc import Iterable

from device_runtime.text import is_word, spaceless

SOME = 0.05  # share of the letters from which it is worth a word
MOST = 0.5  # share from which whole words are no vocabulary
REMEDY = "train with --tokenizer unigram"


def letters(tokens: Iterable[str]) -> tuple[int, int]:
    """Letters of words: those in runs of scripts without spaces, and all.

    >>> letters(["我想吃饭", ",", "ok"])
    (4, 6)
    """
    in_runs = every = 0
    for token in filter(is_word, tokens):
        every += len(token)
        in_runs += len(token) * spaceless(token)
    return in_runs, every


def share_spaceless(tokens: Iterable[str]) -> float:
    """Share of the letters that stand in runs of scripts without spaces; 0 without any letter."""
    in_runs, every = letters(tokens)
    return in_runs / every if every else 0.0


def advice(share: float) -> str | None:
    """A sentence for whoever imports such a text; None where there is nothing to say."""
    if share < SOME:
        return None
    return (
        f"{share:.0%} of the letters are of scripts without spaces (Chinese, Japanese, Thai and "
        f"their kin), where several words are one token: {REMEDY}"
    )
