"""Numbers for Prometheus. What the store keeps is read from it at every scrape, so it survives a
restart and is the same from every replica.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from device_runtime.causes import Step
from device_runtime.wire import FUNNEL, Kind, Phase
from server import mechanism
from server.coordinator import Coordinator
from server.overview import STEPS, Score, eligible, exposure, score
from server.places import Places
from server.store import Rows, StoredTask

LOOKED_AT = 5  # newest rounds of an evaluation, for one that has measured something
# of a task with noise, by the fields of `mechanism.Spent`
SPENT = (
    ("rho", "rho", "Privacy spent, rho of zero-concentrated differential privacy."),
    ("budget", "budget_epsilon", "Epsilon that no sum may pass, at the task's delta."),
    ("delta", "delta", "Delta at which epsilon is told."),
    ("sums", "sums", "Sums with noise that were made."),
    ("beginnings", "beginnings", "Times the noise has begun: with a basis, or a lost state."),
    ("left", "sums_left", "More sums that the budget has room for at worst."),
)
LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The registry of one server, and what its endpoint counts itself."""

    def __init__(
        self,
        coordinator: Coordinator,
        clock: Callable[[], float],
        ended: Mapping[str, int] = MappingProxyType({}),
    ):
        """`ended`: connections that were refused or ended, by why."""
        self.registry = prometheus_client.CollectorRegistry()
        self.refused: dict[str, int] = {}  # requests answered with a Problem, by cause
        named = (
            "fedboard_request_seconds",
            "Time to answer a request, its body included.",
            ["route", "status"],
        )
        self._seconds = prometheus_client.Histogram(
            *named, registry=self.registry, buckets=LATENCIES_S
        )
        self._children: dict[tuple[str, int], Any] = {}
        self.registry.register(_Stored(coordinator, clock, self.refused, ended))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        child = self._children.get((route, status))
        if child is None:
            child = self._children[route, status] = self._seconds.labels(route, str(status))
        child.observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


class _Stored:
    def __init__(
        self,
        coordinator: Coordinator,
        clock: Callable[[], float],
        refused: dict[str, int],
        ended: Mapping[str, int],
    ):
        self._coordinator, self._clock = coordinator, clock
        self._refused, self._ended = refused, ended

    def collect(self) -> Iterable[Any]:
        with self._coordinator.store.reading() as rows:
            tasks, totals, causes = rows.tasks(), rows.totals(), rows.causes()
            devices, windows = rows.count_devices(), rows.open_places()
            scores = _newest_scores(rows, tasks, self._clock())
            exposures = {stored.task.name: exposure(rows, stored.task.name) for stored in tasks}
        requests = CounterMetricFamily(
            "fedboard_refused_requests", "Requests answered with a Problem.", labels=["cause"]
        )
        for cause, count in sorted(self._refused.items()):
            requests.add_metric([cause], count)
        yield requests
        ended = CounterMetricFamily(
            "fedboard_ended_connections", "Connections refused or ended, by why.", labels=["why"]
        )
        for why, count in sorted(self._ended.items()):
            ended.add_metric([why], count)
        yield ended
        yield GaugeMetricFamily("fedboard_devices_enrolled", "Devices enrolled.", value=devices)
        states = GaugeMetricFamily(
            "fedboard_task_state", "1 for the state a task is in.", labels=["task", "kind", "state"]
        )
        rounds = GaugeMetricFamily("fedboard_rounds", "Rounds by phase.", labels=["task", "phase"])
        funnel = CounterMetricFamily(
            "fedboard_devices",
            "Devices and rounds by the step of the funnel they reached.",
            labels=["task", "step"],
        )
        body = CounterMetricFamily(
            "fedboard_body_bytes",
            "Bytes of reports (up) and blobs (down).",
            labels=["task", "direction"],
        )
        lost = CounterMetricFamily(
            "fedboard_devices_lost",
            "Devices and rounds refused or dropped, by cause.",
            labels=["task", "step", "cause"],
        )
        scored = GaugeMetricFamily(
            "fedboard_evaluation_top1",
            "Share of right words of the newest evaluation: of all words, and of devices.",
            labels=["task", "of"],
        )
        epsilon = GaugeMetricFamily(
            "fedboard_privacy_epsilon",
            "Privacy spent; +Inf: nothing is claimed.",
            labels=["task"],
        )
        budgets = [
            (name, GaugeMetricFamily(f"fedboard_privacy_{end}", said, labels=["task"]))
            for name, end, said in SPENT
        ]
        most = GaugeMetricFamily(
            "fedboard_most_participations",
            "Rounds the most counted device was counted in.",
            labels=["task"],
        )
        places = GaugeMetricFamily(
            "fedboard_window_devices",
            "Devices of the newest window for places: asked, drawn of them, came back.",
            labels=["task", "step"],
        )
        helper = GaugeMetricFamily(
            "fedboard_helper_up", "Whether the helper that opens sums has answered when last asked."
        )
        if self._coordinator.helping is not None:
            helper.add_metric([], int(not self._coordinator.helping.standing.problem))
        yield helper
        for stored in tasks:
            name, kind = stored.task.name, stored.task.kind.value
            states.add_metric([name, kind, stored.state.value], 1)
            by_phase = totals.get(name, {})
            for phase in Phase:
                rounds.add_metric(
                    [name, phase.value], by_phase.get(phase.value, {}).get("rounds", 0)
                )
            added = {key: sum(each[key] for each in by_phase.values()) for key in FUNNEL[1:]}
            refused = {
                cause: count
                for (task, step, cause), count in causes.items()
                if (task, step) == (name, Step.REFUSED)
            }
            reached = {
                "checked_in": added["assigned"] + sum(refused.values()),
                "eligible": eligible(added["assigned"], refused),
                **added,
            }
            for step in STEPS:
                funnel.add_metric([name, step], reached[step])
            for direction in ("up", "down"):
                body.add_metric(
                    [name, direction],
                    sum(each[f"bytes_{direction}"] for each in by_phase.values()),
                )
            spent = mechanism.of(stored.task).spent(exposures[name])
            epsilon.add_metric([name], spent.epsilon)
            for field, family in budgets if spent.budget is not None else ():
                family.add_metric([name], getattr(spent, field))
            most.add_metric([name], exposures[name].most)
            window = windows.get(name, Places())
            for step, count in (
                ("asked", window.asked),
                ("drawn", window.drawn),
                ("came", window.taken),
            ):
                places.add_metric([name, step], count)
        for task, latest in scores.items():
            for of, share in zip(
                ("words", "lower_quartile", "median", "upper_quartile"),
                (latest.top1, *latest.quartiles),
                strict=True,
            ):
                if math.isfinite(share):
                    scored.add_metric([task, of], share / 100)
        for (task, step, cause), count in sorted(causes.items()):
            lost.add_metric([task, step, cause], count)
        yield from (states, rounds, funnel, body, lost, scored, epsilon, most, places)
        yield from (family for _, family in budgets)


def _newest_scores(rows: Rows, tasks: Iterable[StoredTask], now: float) -> dict[str, Score]:
    """Of each evaluation task that has measured something of late."""
    newest = {}
    for stored in tasks:
        if stored.task.kind is Kind.EVALUATION:
            for report in rows.reports(stored.task, now, LOOKED_AT):
                measured = score(report)
                if measured is not None:
                    newest[stored.task.name] = measured
    return newest
