"""What devices ask of the coordinator, as values, and how it says no."""

from dataclasses import dataclass

from device_runtime.causes import MEANING, Cause
from device_runtime.secagg_wire import Heard, Sent
from device_runtime.wire import Ack, Assignment, CheckIn, Kind, Reject


class Refused(Exception):
    """A request that breaks a rule. The endpoint answers with a Problem; nothing has changed but
    the ledger.
    """

    def __init__(self, cause: Cause, detail: str = ""):
        """`detail` is what a person reads; by default what the cause means."""
        meaning = MEANING[cause]
        if meaning.status is None:
            raise ValueError(f"no request is refused for {cause}")
        super().__init__(detail or meaning.sentence)
        self.cause, self.detail, self.status = cause, detail or meaning.sentence, meaning.status


@dataclass(frozen=True)
class Nonce:
    """What makes a signature good once, and when it was made."""

    text: str  # 32 hexadecimal digits
    time: int  # seconds since 1970, as the device signed it


# What devices ask. `nonce` is None where no signature was needed; `task` and `round` are those the
# device signed for, "" and 0 if for none.


@dataclass(frozen=True)
class CheckingIn:
    """A device asks for work."""

    device: str
    check_in: CheckIn
    nonce: Nonce | None = None


@dataclass(frozen=True)
class Reporting:
    """An encoded update, or the bytes of Scores."""

    device: str
    assignment: str
    body: bytes | bytearray
    kind: Kind = Kind.TRAINING
    nonce: Nonce | None = None
    signed_for: tuple[str, int] | None = None
    body_digest: str | None = None  # SHA-256 that was signed
    # of a body that was not kept: its assignment was no longer open
    size: int | None = None


@dataclass(frozen=True)
class Abandoning:
    """A device gives its work back, for a cause that it names."""

    device: str
    assignment: str
    cause: Cause
    nonce: Nonce | None = None
    signed_for: tuple[str, int] | None = None


@dataclass(frozen=True)
class Telling:
    """A device sends the message of a step of SecAgg+."""

    device: str
    assignment: str
    message: Sent
    nonce: Nonce | None = None
    signed_for: tuple[str, int] | None = None


@dataclass(frozen=True)
class Hearing:
    """A device asks for what a step of SecAgg+ begins with, by its kind."""

    device: str
    assignment: str
    kind: type[Heard]
    nonce: Nonce | None = None
    signed_for: tuple[str, int] | None = None


@dataclass(frozen=True)
class Fetching:
    """So many bytes of a blob are about to be sent, with its last or without. `makes` is the
    checkpoint that the blob makes if it is a difference.
    """

    device: str
    blob: str
    size: int
    complete: bool
    makes: str = ""
    nonce: Nonce | None = None
    signed_for: tuple[str, int] | None = None


@dataclass(frozen=True)
class Looking:
    """A device reads what became of rounds."""

    device: str
    nonce: Nonce | None = None


Request = CheckingIn | Reporting | Abandoning | Telling | Hearing | Fetching | Looking
Answer = Assignment | Reject | Ack | Heard | Refused | None
