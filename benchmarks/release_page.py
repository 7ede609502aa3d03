"""A picture of the operator's page with two releases side by side, one of which stops itself.

python -m benchmarks.release_page --out docs/releases.png

A real server counts the reports and judges them; a real browser draws the page. The releases are
those of the server's tests, and what the devices say of them is drawn at random, not measured.
"""

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from device_runtime import config
from device_runtime.wire import Kind, ReleaseScores, Scores
from server import endpoint, tasks
from server.eligibility import Policy
from server.requests import CheckingIn, Reporting
from server.rounds import Rules
from server.task import TaskSettings
from tests import toy_releases, toy_server

DEVICES = 60
ROUNDS = 4
LOSS = 0.03  # share of words that the second release has wrong and the first had right
FROM_SECOND = 0.5  # share of the reports: a picture needs no fleet of which 5 % are enough


def report(rng: np.random.Generator) -> bytes:
    """What a device might say: of both releases, or of the first alone."""
    words, pace = int(rng.integers(200, 401)), float(rng.normal(0.19, 0.04))

    def scores(share: float) -> Scores:
        right = int(rng.binomial(words, min(0.5, max(0.02, share))))
        three = min(words - 8, right + int(rng.binomial(words, 0.14)))
        return Scores(words, right, max(right, three), words - 8, 4.6 * (words - 8))

    first = scores(pace)
    if rng.random() >= FROM_SECOND:
        return config.to_json(ReleaseScores(1, first))
    lost = int(rng.binomial(first.top1, min(1.0, LOSS * words / max(1, first.top1))))
    won = int(rng.binomial(words, 0.005))
    right = first.top1 - lost + min(won, first.top3 - first.top1)
    second = Scores(words, right, max(right, first.top3 - lost), words - 8, first.loss * 1.02)
    return config.to_json(ReleaseScores(2, second, 1, first))


def played(folder: Path, now: float) -> toy_server.OneByOne:
    """A server on which devices have compared two releases for some rounds until `now`."""
    coordinator = toy_server.new(folder, Rules(report_goal=20))
    coordinator.pause("default")
    rules = Rules(report_goal=DEVICES, over_selection=1.0, min_reports=20)
    named = {"name": "releases", "kind": Kind.RELEASES, "evaluates": "default", "seed": 1}
    settings = TaskSettings(
        **named, rules=toy_server.by_arrival(rules), policy=Policy(min_separation=1)
    )
    began = now - 3600.0 * (ROUNDS + 1)
    tasks.create(coordinator, settings, began)
    toy_releases.published(coordinator, 1, share=10_000, now=began)
    toy_releases.published(coordinator, 2, share=500, now=began + 60)
    devices, rng = toy_server.enrolled(coordinator, DEVICES), np.random.default_rng(1)
    for number in range(ROUNDS):
        at = began + 3600.0 * (number + 1)
        works = coordinator.handle([CheckingIn(each, toy_server.READY) for each in devices], at)
        reports = [
            Reporting(device, work.assignment, report(rng), Kind.EVALUATION)
            for device, work in zip(devices, works, strict=True)
        ]
        coordinator.handle(reports, at + 60)
    return coordinator


def main() -> None:
    """Draw what the head of this file says."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--width", type=int, default=1100, help="of the window; a phone has 390")
    asked = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        coordinator = played(Path(folder) / "server", time.time())
        sock = endpoint.bind("127.0.0.1", 0)
        server = endpoint.server(endpoint.app(coordinator))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            with sync_playwright() as started:
                browser = started.chromium.launch(
                    executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
                )
                size = {"width": asked.width, "height": 900}
                page = browser.new_page(viewport=size, device_scale_factor=2)
                page.goto(f"http://127.0.0.1:{sock.getsockname()[1]}/")
                page.locator("section", has_text="Side by side").screenshot(path=asked.out)
                browser.close()
        finally:
            server.should_exit = True
            thread.join()
            coordinator.close()


if __name__ == "__main__":
    main()
