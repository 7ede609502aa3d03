"""The operator's page: what it shows of a server that has lived, and that a real browser has it."""

import contextlib
import math
import shutil
import threading
import time
from dataclasses import replace

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import release_page
from device_runtime.bundle import NO_PRIVACY
from device_runtime.wire import Kind, Phase, RoundReport
from server import dashboard, endpoint, overview
from server.coordinator import Coordinator, open_folder
from server.dashboard import Line, plot
from server.mechanism import Exposure, Spent
from server.overview import Overview, Score, TaskView
from server.rounds import Mode
from server.task import State
from tests.played_server import played
from tests.toy_server import READY, enrolled, new

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
REPORT = RoundReport(
    7,
    Phase.REPORTING,
    4,
    checked_in=10,
    refused={"not_charging": 3, "round_full": 1},
    assigned=6,
    downloaded=5,
    uploaded=3,
    counted=2,
    dropped={"condition_lost": 1},
    bytes_up=4_200_000,
    bytes_down=900,
    seconds=3725.0,
    base="ab" * 32,
    base_round=6,
)
TASK = TaskView(
    "default",
    "default",
    Kind.TRAINING,
    State.RUNNING,
    "",
    "fedadam",
    Mode.SYNCHRONOUS,
    4,
    6,
    2,
    (REPORT,),
    (),
    (Score(6, 18.25, 30.5, 4.75, 900, (15.0, 17.5, 21.0), 4),),
    Exposure(6, 3, 2),
    Spent(NO_PRIVACY),
)
SHOWN = Overview(1e9, 1e9 - 90, "SQLite", 12, (("replayed", 2),), (TASK,))


def html(**changes: object) -> str:
    return dashboard.page(replace(SHOWN, tasks=(replace(TASK, **changes),))).html


def test_the_funnel_goes_from_check_in_to_counted_by_way_of_those_who_could_have_joined():
    assert [(name, count) for name, count, _ in dashboard.funnel(REPORT)] == [
        ("checked in", 10),
        ("eligible", 7),  # six assigned, and one there was no place for
        ("assigned", 6),
        ("downloaded", 5),
        ("uploaded", 3),
        ("counted", 2),
    ]


def test_the_funnel_of_devices_that_open_their_sum_has_a_line_for_each_of_their_steps():
    steps = {"keys": 4, "shares": 4, "consents": 2, "unmasked": 1}
    lines = dashboard.funnel(replace(REPORT, steps=steps))
    assert [(name, count) for name, count, _ in lines][4:] == [
        ("keys", 4),
        ("shares", 4),
        ("uploaded", 3),
        ("counted", 2),
        ("consents", 2),
        ("unmasked", 1),
    ]


def test_a_cause_of_a_later_version_is_shown_in_its_own_words_and_counts_as_no_place():
    report = replace(REPORT, refused={"sun_spots": 2, "round_full": 1})
    assert overview.eligible(report.assigned, report.refused) == report.assigned + 1
    assert "sun spots" in html(reports=(report,))


def test_the_page_says_what_is_going_on_in_words_and_figures():
    text = html()
    for said in (
        "Round 7: reporting, open for 1 h 2 min",
        "2 of 4",
        "not on a charger",
        "unplugged, off WiFi or picked up",
        "4.2 MB up, 900 B down",
        "18.2 %",
        "30.5 %",
        "17.5 %",  # of the median device
        "<td>17.5 (15.0 to 21.0)</td>",
        "no privacy guarantee (epsilon) is claimed",
        "counted most often was in 3",
        "nearer than 2",
        "up 1 min 30 s",
    ):
        assert said in text, said
    assert "No task yet" in dashboard.page(replace(SHOWN, tasks=())).html
    assert "No round has ended yet" in html(scores=())
    nobody = (math.nan, math.nan, math.nan)  # an older version did not count devices
    unknown = html(scores=(replace(TASK.scores[0], quartiles=nobody),))
    assert "nan" not in unknown and "<td>–</td>" in unknown
    # every device of an evaluation said that it typed no word of the vocabulary
    newest = replace(TASK.scores[0], round=7, loss=math.nan)
    wordless = html(scores=(*TASK.scores, newest))
    assert "nan" not in wordless and "<td>–</td>" in wordless and "<td>4.75</td>" in wordless


def test_nothing_a_task_is_called_becomes_markup():
    assert "<script>alert" not in html(
        name="<script>alert(1)</script>", population='"><img src=x>', evaluates="<b>"
    )
    assert "<img" not in html(population='"><img src=x>')


def test_only_the_page_s_own_style_and_script_may_run():
    policy = dashboard.page(SHOWN).policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert " style=" not in dashboard.page(SHOWN).html
    assert " on" + "click" not in dashboard.page(SHOWN).html


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e9, 1e9)), min_size=1, max_size=50))
@example([(0.0, 0.0), (1.0, 5e-324)])
def test_every_point_of_a_plot_lies_inside_it(points):
    drawn = str(plot("any", [Line("line", "a", tuple(sorted(points)))]))
    path = drawn.partition('<polyline class="line a" points="')[2].partition('"')[0]
    for point in path.split():
        x, y = map(float, point.split(","))
        assert 40 <= x <= 460 and 0 <= y <= 170


def test_figures_that_are_none_are_left_out_of_a_plot():
    none = (2.0, math.nan)
    assert "no figures yet" in plot("loss", [Line("loss", "c", (none,))])
    assert plot("loss", [Line("loss", "c", ((1.0, 4.5), none))]) == plot(
        "loss", [Line("loss", "c", ((1.0, 4.5),))]
    )


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1_428_252, "1.4 MB"), (3e12, "3.0 TB")],
)
def test_bytes_for_people(count, said):
    assert dashboard.size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.6, "1 min"), (3725, "1 h 2 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)
def test_times_for_people(seconds, said):
    assert dashboard.span(seconds) == said


def test_an_overview_of_a_server_that_has_lived_adds_up(tmp_path):
    coordinator = played(tmp_path, 4, now=1e6)
    shown = overview.read(coordinator, 1e6, 0.0, {})
    trained, scored, paused = shown.tasks
    assert [(task.name, task.kind, task.state) for task in shown.tasks] == [
        ("default", "training", "running"),
        ("accuracy", "evaluation", "running"),
        ("swiss-german", "training", "paused"),
    ]
    assert shown.devices == 90
    assert len(trained.scores) == sum(report.phase == "committed" for report in scored.reports)
    assert trained.live is trained.reports[-1]
    assert trained.exposure.smallest_separation >= 2
    assert [each.current for each in trained.checkpoints] == [True] + [False] * (
        len(trained.checkpoints) - 1
    )
    assert all(
        each.parent == older.sha
        for each, older in zip(trained.checkpoints, trained.checkpoints[1:], strict=False)
    )
    assert paused.scores == ()
    coordinator.close()


# in a browser


@contextlib.contextmanager
def served(coordinator: Coordinator, port: int = 0):
    sock = endpoint.bind("127.0.0.1", port)
    server = endpoint.server(endpoint.app(coordinator))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser is driven by playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    quiet = (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{option}" for option in quiet]
        )
        yield opened
        opened.close()


def opened(browser, url: str, **options: object):
    """A page, and what its console and its requests say."""
    page, said, asked = browser.new_context(**options).new_page(), [], []
    page.on(
        "console",
        lambda message: said.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    return page, said, asked


def test_the_page_loads_updates_by_itself_and_says_so_when_the_server_is_gone(
    browser, tmp_path, monkeypatch
):
    monkeypatch.setattr(dashboard, "REFRESH_S", 0.3)
    dashboard._templates.cache_clear()
    coordinator = new(tmp_path / "server", endpoint_rules())
    with served(coordinator) as port:
        page, said, asked = opened(browser, f"http://127.0.0.1:{port}/")
        page.get_by_text("0 devices enrolled").wait_for()
        page.get_by_text("Newest rounds").click()
        (device,) = enrolled(coordinator, 1)
        coordinator.check_in(device, READY, time.time())
        page.get_by_text("1 device enrolled").wait_for()  # without a reload
        assert page.locator("details[open]").count() == 1
        page.get_by_text("updated").wait_for()
        assert page.evaluate("performance.getEntriesByType('navigation').length") == 1
        assert said == []
    page.get_by_text("the server does not answer").wait_for()
    with served(Coordinator(*open_folder(tmp_path / "other")), port):
        page.get_by_text("No task yet").wait_for()
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{port}"}
    coordinator.close()
    dashboard._templates.cache_clear()


def endpoint_rules():
    from server.rounds import Rules

    return Rules(report_goal=2)


def test_the_page_fits_a_phone_and_reads_well_in_the_dark(browser, tmp_path):
    with served(played(tmp_path, 3, time.time())) as port:
        url = f"http://127.0.0.1:{port}/"
        page, said, _ = opened(
            browser, url, viewport={"width": 360, "height": 740}, color_scheme="dark"
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("summary").first.click()
        # a wide table scrolls inside
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("svg.plot").count() >= 6
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            for selector in (
                "body",
                ".soft",
                "h3",
                ".key.a",
                ".key.b",
                ".state.running",
                ".state.paused",
            ):
                assert page.evaluate(CONTRAST, selector) >= 4.5, (scheme, selector)
        assert said == []
        assert httpx.get(url).headers["cache-control"] == "no-store"


def test_releases_side_by_side_fit_a_phone_and_read_well_in_the_dark(browser, tmp_path):
    with served(release_page.played(tmp_path / "server", time.time())) as port:
        options = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
        page, said, _ = opened(browser, f"http://127.0.0.1:{port}/", **options)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("svg rect.bar").count() == 4
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            for selector in (".bad", ".state.stopped", ".state.offered", ".key.bad"):
                assert page.evaluate(CONTRAST, selector) >= 4.5, (scheme, selector)
        assert said == []


# the ratio of WCAG 2.1 between a text and the card it stands on
CONTRAST = """(selector) => {
  const light = (colour) => {
    const linear = (each) => (each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    const shares = colour.match(/[0-9.]+/g).slice(0, 3).map((each) => each / 255);
    const [r, g, b] = shares.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ink = light(getComputedStyle(document.querySelector(selector)).color);
  const under = document.querySelector(selector === "body" ? "body" : "section");
  const card = light(getComputedStyle(under).backgroundColor);
  return (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05);
}"""
