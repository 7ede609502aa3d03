"""Logs: one JSON object a line on standard error, for machines that collect them. No body, key,
token, text or device goes into one.
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
    "error",
)


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


def begin(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Write the server's lines, and uvicorn's warnings, to a stream."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    for name, least in (("fedboard.server", level), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
