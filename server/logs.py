"""Logs: one JSON object a line on standard error, for machines that collect them. Few lines of a
kind in a second; no body, header, path, address, key, token, text or device goes into one.
"""

import json
import logging
import sys
from typing import Any, TextIO

# what a line may hold beside its message
FIELDS = (
    "task",
    "round",
    "phase",
    "counted",
    "method",
    "route",
    "status",
    "ms",
    "count",
    "reason",  # why a round was abandoned whose sum could not be opened
    "rho",  # of a task with noise, once a round is closed
    "epsilon",
    "sums",
    "over",  # why no further round starts
    "population",
    "release",
    "older",
    "share",
    "error",
    "left_out",  # lines of the same kind, since the last one of it
)
MOST_A_SECOND = 5  # lines of one kind; whoever can bring one about can bring about thousands


class Lines(logging.Formatter):
    """Formats a record as one JSON object, of its message and the FIELDS it carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
        }
        line["event"] = record.getMessage()
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[0]:
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            # where it happened, not what it said: a database's words can hold what was written
            line["raised"] = record.exc_info[0].__name__
            if trace is not None:
                line["at"] = (
                    f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
                )
        return json.dumps(line)


class Sparing(logging.Filter):
    """Lets through few lines of a kind in a second, by the time of the lines themselves. The next
    line of that kind says how many were left out. A kind is what a line is, whatever it says of its
    request; there are only as many as the program has lines.
    """

    def __init__(self, most: int = MOST_A_SECOND):
        super().__init__()
        self._most = most
        # by kind: the second, lines let through in it, lines left out since the last
        self._kinds: dict[tuple[str, int], tuple[int, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the line."""
        kind, second = (record.pathname, record.lineno), int(record.created)
        before, written, left_out = self._kinds.get(kind, (second, 0, 0))
        if second != before:
            written = 0
        if written >= self._most:
            self._kinds[kind] = (second, written, left_out + 1)
            return False
        self._kinds[kind] = (second, written + 1, 0)
        if left_out:
            record.left_out = left_out
        return True


def begin(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Write the server's lines, and uvicorn's warnings, to a stream."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    handler.addFilter(Sparing())
    for name, least in (("fedboard.server", level), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
