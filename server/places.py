"""Places: how the places of a round are given to those who ask for one. Reads no clock, no store.

            the first asks            its end                a claim ends, places are free
    no window ----------> devices ask -------> devices claim ----------------------------+
        ^                 each has a           who was drawn comes in, the next in       |
        |                 ticket               place wait, the others hear they lost <---+
        +---------------------------------------------------- all taken, or none left to come

Whoever asks while a window is open has one ticket, however often and however fast it asks. At the
end all tickets are put in a random order, and the first as many as there are places may come in.
Those who do not come in time are replaced by the next in the order. Source: Bonawitz et al. 2019,
arXiv:1902.01046, section 2.2 (selection by reservoir sampling over those who are connected).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from device_runtime.causes import Cause

RESERVE = 2  # tickets that are put in order / places: enough for as many no-shows as places
CLAIMS = 3  # times that places are given out in a window: to those drawn, then to replace no-shows


@dataclass(frozen=True)
class Places:
    """What a round knows of its places. Times are those of the round's events."""

    window: int = 0  # windows opened so far
    until: float | None = None  # end of the asking or claiming under way; None: none is open
    asked: int = 0  # tickets of the window
    seats: int = 0  # places it gives, once its tickets are drawn
    bar: int = 0  # a ticket whose place in the order is lower may come in
    taken: int = 0
    claims: int = 0  # 0 while devices ask
    # since when all who came for an empty round have been counted too few rounds ago
    turned_away_at: float | None = None

    @property
    def asking(self) -> bool:
        """Whether tickets are given."""
        return self.until is not None and not self.claims

    @property
    def claiming(self) -> bool:
        """Whether those drawn may come in."""
        return self.until is not None and self.claims > 0

    @property
    def spare(self) -> bool:
        """Whether a place is left for a device without a ticket: nobody who asked lost one."""
        return self.claiming and self.asked < self.seats

    @property
    def drawn(self) -> int:
        """Tickets that may come in."""
        return min(self.bar, self.asked) if self.claims else 0


class Ticket(NamedTuple):
    """That a device asked in a window, and its place in the order, from 0; None: not drawn yet, or
    too far behind to be kept.
    """

    window: int
    place: int | None = None


class Chance(StrEnum):
    """What a device that may join can do now."""

    COMES_IN = "comes_in"
    ASKS = "asks"
    WAITS = "waits"  # it has a ticket, and its time has not come


def open_window(places: Places, until: float) -> Places:
    """A window in which nobody has asked yet."""
    return Places(places.window + 1, until, turned_away_at=places.turned_away_at)


def shut(places: Places) -> Places:
    """The window is over: its figures stay for who reads them."""
    return replace(places, until=None)


def settle(places: Places, now: float, free: int, claim_s: float) -> Places:
    """What the passing of time makes of an open window; `free` places can be given if its tickets
    are to be drawn. A server that was away draws when it is back, and gives whole times to claim.
    """
    if places.until is None:
        return places
    if places.claims and places.taken >= places.seats:
        return shut(places)
    if now < places.until:
        return places
    if not places.claims:
        if not places.asked or free <= 0:
            return shut(places)
        return replace(places, seats=free, bar=free, taken=0, claims=1, until=now + claim_s)
    last = min(places.asked, RESERVE * places.seats)
    if places.bar >= last or places.claims >= CLAIMS:
        return shut(places)
    bar = min(places.bar + places.seats - places.taken, last)
    return replace(places, bar=bar, claims=places.claims + 1, until=now + claim_s)


def chance(places: Places, ticket: Ticket | None) -> Chance | Cause:
    """What a device may do about an open window, or why nothing. Tickets of other windows are
    none.
    """
    mine = ticket is not None and ticket.window == places.window
    if places.asking:
        return Chance.WAITS if mine else Chance.ASKS
    if ticket is None or not mine:
        return Chance.COMES_IN if places.spare else Cause.ROUND_FULL
    if ticket.place is None:
        return Cause.NOT_DRAWN
    if ticket.place < places.bar:
        return Chance.COMES_IN if places.taken < places.seats else Cause.ROUND_FULL
    return Chance.WAITS if places.claims < CLAIMS else Cause.NOT_DRAWN


def draw(names: Iterable[str], seats: int, secret: str) -> dict[str, int]:
    """The places of those who asked, from 0, as far as they are kept: every order is as likely as
    any other. The same for the same names and secret, and nobody's to foretell who does not know
    all of both: a name cannot be chosen to win.
    """
    ordered = sorted(names)
    hashed = hashlib.sha256("\n".join(["fedboard-draw-v1", secret, *ordered]).encode()).digest()
    order = np.random.default_rng(int.from_bytes(hashed)).permutation(len(ordered))
    return {ordered[number]: place for place, number in enumerate(order[: RESERVE * seats])}
