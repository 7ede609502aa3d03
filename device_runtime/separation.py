"""Minimum separation: how many rounds lie between two reports of one device. One definition for
scheduler, device and accountant.
"""


def may_join(round: int, last: int | None, min_separation: int) -> bool:
    """Whether a device that reported in round `last` of a task (None: in none) may report in
    `round`: at the earliest `min_separation` rounds on.
    """
    return last is None or round - last >= min_separation


def most_participations(rounds: int, min_separation: int) -> int:
    """The most rounds, of so many in a row, that one device can report in: what an accountant has
    to assume.
    """
    return -(-rounds // min_separation)
