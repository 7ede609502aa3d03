"""Outgoing reports: one that is whole is kept until its server has answered.

It is sent again as it is, or not at all: made anew it would have another mask, and a server that
had both would know more than it may. What it says was learned from typed text, so it is sealed
under the typing log's key, and the first of its messages that is forgotten takes it along.
"""

from device_runtime import config
from device_runtime.errors import ConfigError, TypingLogError
from device_runtime.turn import Label, Outgoing
from device_runtime.typing_log import TypingLog

PURPOSE = "outgoing report"


def seal(report: Outgoing, log: TypingLog) -> bytes:
    """As a file of the device: the label's line, then the body."""
    return log.seal(config.to_json(report.label) + b"\n" + report.body, PURPOSE)


def unseal(data: bytes, log: TypingLog) -> Outgoing | None:
    """What `seal` wrote, while all its messages are there; None for anything else."""
    try:
        line, _, body = log.unseal(data, PURPOSE).partition(b"\n")
        label = config.from_json(Label, line, PURPOSE)
    except (TypingLogError, ConfigError):
        return None
    return Outgoing(label, body) if log.holds(label.records) else None
