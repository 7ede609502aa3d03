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


def meets(runtime: str, minimum: str) -> bool:
    """Whether a runtime, as it is named in a check-in, is at least a version of tflite-runtime.

    >>> meets("2.14.0", "2.5"), meets("ai-edge-litert 2.3.0", "2.14.0"), meets("", "2.14.0")
    (True, True, False)
    """
    name, _, version = runtime.rpartition(" ")
    has, needed = numbers(version), numbers(minimum)
    if has is None or needed is None:
        return False
    return name == LITERT or (not name and has >= needed)
