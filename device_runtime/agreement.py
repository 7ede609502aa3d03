"""Agreement: do a task's signed terms agree with what a device holds its server to?

Terms are the maker's word on who sees an update. A bundle may hold its maker to more (`Pins`), and
a plan or a network may not be another than the terms were signed for. A reason says where, what
was expected and what it is; it is empty where all agree.
"""

from dataclasses import dataclass

from device_runtime import spent
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Assignment, Kind, Plan


@dataclass(frozen=True)
class Pins:
    """What terms must say; None where a bundle leaves it to them."""

    aggregation: Aggregation | None = None
    helper: str | None = None  # public key, hexadecimal
    noise: bool | None = None  # True: noise is added to every sum of updates
    epsilon: float | None = None  # that a task may spend at most, at `delta`
    delta: float | None = None


def why_exposed(terms: Terms, pins: Pins) -> str:
    """Why an update would be seen by others than the bundle names."""
    if pins.aggregation is not None and terms.aggregation is not pins.aggregation:
        return _differs("aggregation", pins.aggregation, terms.aggregation)
    if pins.helper is not None and terms.helper != pins.helper:
        return _differs("helper", pins.helper[:16], terms.helper[:16] or "none")
    return _why_too_little_noise(terms, pins)


def _why_too_little_noise(terms: Terms, pins: Pins) -> str:
    """Why updates would be less well hidden in their sum than the bundle asks for."""
    if not pins.noise and pins.epsilon is None:
        return ""
    if terms.noise is None or not spent.is_added(terms.noise):
        return _differs("noise", "some on every sum", "none")
    if pins.epsilon is None:
        return ""
    delta = terms.noise.delta if pins.delta is None else pins.delta
    epsilon = spent.budget(terms.noise, delta)
    # what was worked out at another delta and back
    if epsilon <= pins.epsilon * (1 + 1e-9):
        return ""
    at_most = f"at most {pins.epsilon:g} at delta {delta:g}"
    return _differs("noise.epsilon", at_most, f"{epsilon:.6g}")


def why_another_network(terms: Terms, shapes: str) -> str:
    """Why the terms are for another network than the device's; `shapes` is
    `weights.shapes_hash` of its.
    """
    return "" if terms.shapes == shapes else _differs("shapes", shapes[:16], terms.shapes[:16])


def why_another_kind(terms: Terms, assignment: Assignment) -> str:
    """Why the terms are of another kind of work, or count by another list than it brings: who has
    signed for updates has signed for no question, and the other way round.
    """
    if (assignment.kind is Kind.COUNTS) != (terms.table is not None):
        expected = "a table" if assignment.kind is Kind.COUNTS else "none"
        return _differs("table", expected, "none" if terms.table is None else "one")
    if terms.table is not None and terms.table.entries != assignment.checkpoint:
        return _differs("table.entries", assignment.checkpoint[:16], terms.table.entries[:16])
    return ""


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
