"""Agreement: do a task's signed terms agree with what a device holds its server to?

Terms are the maker's word on who sees an update. A bundle may hold its maker to more (`Pins`), and
a plan or a network may not be another than the terms were signed for. A reason says where, what
was expected and what it is; it is empty where all agree.
"""

from dataclasses import dataclass

from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Plan


@dataclass(frozen=True)
class Pins:
    """What terms must say; None where a bundle leaves it to them."""

    aggregation: Aggregation | None = None
    helper: str | None = None  # public key, hexadecimal


def why_exposed(terms: Terms, pins: Pins) -> str:
    """Why an update would be seen by others than the bundle names."""
    if pins.aggregation is not None and terms.aggregation is not pins.aggregation:
        return _differs("aggregation", pins.aggregation, terms.aggregation)
    if pins.helper is not None and terms.helper != pins.helper:
        return _differs("helper", pins.helper[:16], terms.helper[:16] or "none")
    return ""


def why_another_network(terms: Terms, shapes: str) -> str:
    """Why the terms are for another network than the device's; `shapes` is
    `weights.shapes_hash` of its.
    """
    return "" if terms.shapes == shapes else _differs("shapes", shapes[:16], terms.shapes[:16])


def why_another_plan(terms: Terms, plan: Plan) -> str:
    """Why an update by these terms would say more than the plan lets it."""
    if terms.bits > plan.bits:
        return _differs("bits", f"at most the plan's {plan.bits}", terms.bits)
    if terms.clipping_norm > plan.clipping_norm:
        norm = f"at most the plan's {plan.clipping_norm:g}"
        return _differs("clipping_norm", norm, f"{terms.clipping_norm:g}")
    return ""


def why_another_dimension(terms: Terms, values: int) -> str:
    """Why the terms are for a network of another number of values."""
    return "" if terms.dimension == values else _differs("dimension", values, terms.dimension)


def _differs(field: str, expected: object, actual: object) -> str:
    return f"terms.{field}: expected {expected}, found {actual}"
