"""Forms: how people write each word: with which capitals, which sigma, which ß.

Words are compared folded (`device_runtime.text.fold`) and shown as most people write them within
sentences. A capital at the start of a sentence says nothing, and neither does a message that is all
capitals. A form with capitals must be several people's, since one may write as they like.
"""

from collections import Counter, defaultdict
from collections.abc import Collection

from device_runtime.text import fold, is_word, written
from model.corpus import Users

SEVERAL = 2  # people who must have written a form with capitals
SHARE = 0.4  # of the places where a word stands within a sentence: so many have it so
_ENDS = (".", "?", "!", "...")
# the one word of English that is written with a capital wherever it stands
_FIRST_PERSON = ("i", "i'm", "i'll", "i'd", "i've", "i'ma")
_WITHOUT = ("ill", "id", "im", "ive")  # which some write without their apostrophe


def usual_forms(users: Users, words: Collection[str], language: str = "") -> dict[str, str]:
    """How each of these words is usually written, where that is not how it is compared. `language`
    is a BCP 47 tag, or several with a `+` between them.
    """
    wanted = set(words)
    forms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    writers: defaultdict[str, dict[str, str]] = defaultdict(dict)  # form -> who wrote it, some two
    for name, utterances in users.items():
        for utterance in utterances:
            for token, form in _within(utterance.text):
                if token in wanted:
                    forms[token][form] += 1
                    known = writers[form]
                    if len(known) < SEVERAL:
                        known[name] = name
    usual = {}
    for token, counts in forms.items():
        form = counts.most_common(1)[0][0]
        capital = _most_written(counts, token)
        if capital and len(writers[capital]) >= SEVERAL:
            if counts[capital] >= SHARE * counts.total():
                usual[token] = capital
        elif token not in counts and form != token and form == form.lower():
            usual[token] = form  # its letters are never compared as they are written
    if "en" in {tag.split("-")[0] for tag in language.split("+")}:
        usual |= {word: "I" + word[1:] for word in _FIRST_PERSON if word in wanted}
        usual = {token: form for token, form in usual.items() if token not in _WITHOUT}
    return usual


def encoded(usual: dict[str, str]) -> bytes:
    """Usual forms as a file: one a line, in alphabetical order."""
    return "".join(f"{form}\n" for form in sorted(usual.values())).encode()


def _most_written(counts: Counter[str], token: str) -> str:
    """The most used form with capitals; "" where there is none."""
    with_capitals = [form for form in counts if form != form.lower() and fold(form) == token]
    return max(with_capitals, key=lambda form: (counts[form], form), default="")


def _within(message: str) -> list[tuple[str, str]]:
    """Words of a message and how they are written, without those that a sentence starts with."""
    if message.isascii() and message.islower():
        return [(token, form) for token, form in written(message) if is_word(token)][1:]
    if message.isupper():
        return []
    pairs, begins = [], True
    for token, form in written(message):
        if is_word(token):
            if not begins:
                pairs.append((token, form))
            begins = False
        elif token in _ENDS:
            begins = True
    return pairs
