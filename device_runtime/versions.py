"""Versions of an interpreter: what a device says of its own, and which minimum it meets."""

LITERT = "ai-edge-litert"  # every version of it is newer than every tflite-runtime


def numbers(version: str) -> tuple[int, ...] | None:
    """The numbers of a version; None for what is none.

    >>> numbers("2.14.0"), numbers("2.x")
    ((2, 14, 0), None)
    """
    parts = version.split(".")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        return None
    return tuple(map(int, parts))


def meets(runtime: str, minimum: str) -> bool | None:
    """Whether a runtime, as it is named in a check-in, is at least a version of tflite-runtime;
    None for one whose version cannot be told.

    >>> meets("2.14.0", "2.5"), meets("ai-edge-litert 2.3.0", "2.14.0"), meets("2.9.post1", "2.14")
    (True, True, False)
    >>> meets("newest", "2.14.0") is None
    True
    """
    name, _, version = runtime.rpartition(" ")
    if name == LITERT:
        return True
    after = len(version.lstrip("0123456789."))  # what follows a release, as in 2.14.0rc1
    has = numbers(version[: len(version) - after].rstrip("."))
    return None if has is None else has >= (numbers(minimum) or ())
