"""The dashboard in a real browser: it draws and acts.

It shows that the connection is lost, and recovers.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from backpressure import BackpressureMonitorConfig, BufferConfig, BufferManager, FlowControlConfig
from backpressure.http import dashboard
from tests.support.http import TOKEN, Client, serving
from tests.support.threads import until

FILES = Path(dashboard.__file__).parent
CHARTS = ["rates", "delay", "waiting", "pressure", "batch", "circuit"]


# ---------------------------------------------------------------- what is served


def test_every_file_is_served_with_its_type_and_nothing_else_is() -> None:
    client = Client(BufferManager(BufferConfig(lane_bytes=4096)))
    page = client.get("/buffer/", headers={})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (FILES / "index.html").read_bytes()
    for path in FILES.iterdir():
        if path.suffix in (".py", "") or path.name == "__pycache__":
            continue
        reply = client.get(f"/buffer/static/{path.name}", headers={})
        assert (reply.status_code, reply.content) == (200, path.read_bytes()), path.name
        again = client.get(
            f"/buffer/static/{path.name}", headers={"If-None-Match": reply.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
    for name in (
        "__init__.py",
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        ".",
        "nothing.js",
        "index.html/",
    ):
        assert client.get(f"/buffer/static/{name}", headers={}).status_code in (404, 307), name


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    page = (FILES / "index.html").read_text()
    assert re.findall(r"https?://", page) == []
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son[a-z]+=|\sstyle=|javascript:", page) == []
    for name in ("dashboard.js", "charts.js", "dashboard.css"):
        text = (FILES / name).read_text()
        assert (
            re.findall(
                r"https?://|innerHTML|insertAdjacentHTML|document\.write|\beval\b|url\(|@import",
                text,
            )
            == []
        ), name
    assert "MIT" in (FILES / "uPlot.LICENSE").read_text()


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-sync",
            ),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-dev-shm-usage",
            ),
            *(f"--user-data-dir={profile}", "--window-size=1280,1400"),
            # Lines of whole pixels, which show their colour without a blend.
            "--force-device-scale-factor=2",
        ):
            options.add_argument(flag)
        environment = {
            name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
        }
        with closing_browser(webdriver.Chrome(options, Service(driver, env=environment))) as opened:
            yield opened


@contextmanager
def closing_browser(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    try:
        browser.set_page_load_timeout(60)
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def buffer() -> Iterator[BufferManager]:
    """A buffer with a little traffic through it."""
    # Some of it waits long, which is not to count as overload.
    monitor = BackpressureMonitorConfig(delay_threshold=600.0, adaptive_thresholds=False)
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 20, monitor=monitor))
    done = threading.Event()

    def flow() -> None:
        while not done.is_set():
            for priority in (1, 3, 5):
                buffer.add_lines(b"line\n" * 50 * priority, priority=priority)
            # One of three lanes: something waits in the others.
            batch = buffer.get_batch()
            if batch is not None:
                batch.ack()
            done.wait(0.05)

    thread = threading.Thread(target=flow)
    thread.start()
    yield buffer
    done.set()
    thread.join()


def text(browser: webdriver.Chrome, selector: str) -> str:
    return str(
        browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)
    ).strip()


def painted(browser: webdriver.Chrome, chart: str) -> int:
    """How many pixels of a chart have the colour of its (last) series.

    None of an empty one.
    """
    return int(
        browser.execute_script(
            """
            const canvas = document.querySelector(`[data-chart=${arguments[0]}] canvas`);
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const style = getComputedStyle(document.documentElement);
            const wanted = style.getPropertyValue(arguments[1]).trim();
            const [r, g, b] = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
              const [red, green, blue] = data.slice(at, at + 3);
              const away = Math.abs(red - r) + Math.abs(green - g) + Math.abs(blue - b);
              found += away < 12 && data[at + 3] > 200;
            }
            return found;
            """,
            chart,
            {"rates": "--in", "delay": "--threshold", "waiting": "--p5"}.get(chart, f"--{chart}"),
        )
    )


def is_painted(browser: webdriver.Chrome, chart: str) -> bool:
    return painted(browser, chart) >= 8


def until_painted(browser: webdriver.Chrome) -> None:
    """Wait until each chart shows its series.

    A look costs, and what is painted stays.
    """
    for chart in CHARTS:
        until(partial(is_painted, browser, chart))


def complaints(browser: webdriver.Chrome) -> list[str]:
    """The browser's console without what `painted` itself causes.

    Violated policies, failed requests, exceptions.
    """
    log: list[dict[str, Any]] = browser.get_log("browser")
    return [entry["message"] for entry in log if "getImageData" not in entry["message"]]


def give_token(browser: webdriver.Chrome, token: str) -> None:
    browser.find_element(By.ID, "token").send_keys(token, Keys.ENTER)


def set_value(browser: webdriver.Chrome, control: str, value: str) -> None:
    field = browser.find_element(By.ID, control)
    field.clear()
    field.send_keys(value)
    browser.find_element(By.CSS_SELECTOR, f"[data-control={control}] button").click()


def test_it_draws_the_figures_and_asks_for_nothing_elsewhere(
    browser: webdriver.Chrome, buffer: BufferManager
) -> None:
    with serving(buffer) as address:
        browser.get(f"{address}/buffer/")
        until(lambda: text(browser, "#connection .text") == "live")
        until(lambda: text(browser, "[data-tile=accepted]") not in ("–", "–/s", "0/s"))
        until_painted(browser)
        assert text(browser, "[data-tile=circuit]") == "closed"
        assert text(browser, "[data-tile=batch]") == "50K"
        assert text(browser, "#health .text") == "healthy"
        asked = browser.execute_script(
            "return performance.getEntriesByType('resource').map((one) => one.name)"
        )
        assert len(asked) > 5
        assert [url for url in asked if not url.startswith(f"{address}/buffer/")] == []
        assert complaints(browser) == []
        labels = browser.execute_script(
            "return [...document.querySelectorAll('.plot')].map((one) => one.ariaLabel)"
        )
        assert all("Now:" in label for label in labels)
        browser.get("about:blank")


def test_it_shows_the_lanes_that_there_are(browser: webdriver.Chrome) -> None:
    flow = FlowControlConfig(priority_levels=2)
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 14, flow_control=flow))
    buffer.add_events([b"x"] * 7)

    def shown() -> list[str]:
        return list(
            browser.execute_script(
                "return [...document.querySelectorAll('[data-chart=waiting] .u-series .u-label')]"
                ".map((one) => one.textContent)"
            )
        )

    with serving(buffer) as address:
        browser.get(f"{address}/buffer/")
        until(lambda: shown()[1:] == ["2", "1"])
        label = "return document.querySelector('[data-chart=waiting] .plot').ariaLabel"
        until(lambda: browser.execute_script(label).endswith("Now: 2 7, 1 0."))
        assert complaints(browser) == []
        browser.get("about:blank")


def test_one_of_several_sinks_is_chosen(browser: webdriver.Chrome) -> None:
    buffers = {name: BufferManager(BufferConfig(lane_bytes=1 << 14)) for name in ("a", "<b>")}
    buffers["<b>"].add_events([b"x"] * 7)
    with serving(buffers) as address:
        browser.get(f"{address}/buffer/")
        until(lambda: text(browser, "#connection .text") == "live")
        options = "return [...document.querySelectorAll('#sink option')].map((one) => one.value)"
        assert browser.execute_script(options) == ["a", "<b>"]
        until(lambda: text(browser, "[data-tile=waiting]") == "0")
        browser.find_element(By.CSS_SELECTOR, "#sink option:last-child").click()
        until(lambda: text(browser, "[data-tile=waiting]") == "7")
        give_token(browser, TOKEN)
        set_value(browser, "batch", "5000")
        until(lambda: buffers["<b>"].stats().batching.batch_size == 5000)
        until(lambda: "5,000" in text(browser, "#feed"))
        assert buffers["a"].stats().batching.batch_size == 50_000
        assert complaints(browser) == []
        browser.get("about:blank")


def test_it_shows_events_as_text_whatever_they_contain(
    browser: webdriver.Chrome, buffer: BufferManager
) -> None:
    with serving(buffer) as address:
        browser.get(f"{address}/buffer/")
        until(lambda: text(browser, "#connection .text") == "live")
        until(lambda: len(buffer._notifications._subscriptions) == 1)
        buffer.adjust_batch_size(4321, by="<img src=x onerror=\"document.title='owned'\"><b>me</b>")
        until(lambda: "<b>me</b>" in text(browser, "#feed"))
        assert "4,321" in text(browser, "#feed")
        assert browser.find_elements(By.CSS_SELECTOR, "#feed b, #feed img") == []
        assert browser.title == "forebay"
        until(lambda: "4.3K" in text(browser, "[data-tile=batch]"))
        browser.get("about:blank")


def test_controls_act_and_need_the_token(browser: webdriver.Chrome, buffer: BufferManager) -> None:
    with serving(buffer) as address:
        browser.get(f"{address}/buffer/")
        browser.execute_script("sessionStorage.clear()")
        set_value(browser, "rate", "12345")
        until(lambda: "needs the token" in text(browser, "#result"))
        give_token(browser, "wrong")
        set_value(browser, "rate", "12345")
        until(lambda: "the token is wrong" in text(browser, "#result"))
        assert browser.execute_script("return sessionStorage.length") == 0
        assert buffer.stats().flow_control.rate_limit == 20_000_000

        give_token(browser, TOKEN)
        set_value(browser, "rate", "123456")
        until(lambda: buffer.stats().flow_control.rate_limit == 123_456)
        until(lambda: "123,456" in text(browser, "#result"))
        set_value(browser, "batch", "5000")
        until(lambda: buffer.stats().batching.batch_size == 5000)
        set_value(browser, "batch", "5")
        until(
            lambda: "size: must be an int from 1,000 to 100,000, not 5" in text(browser, "#result")
        )
        assert buffer.stats().batching.batch_size == 5000
        buffer._control.breaker.force_open()
        until(lambda: text(browser, "[data-tile=circuit]") == "forced open")
        until(lambda: "the circuit is forced open" in text(browser, "#health"))
        browser.find_element(By.CSS_SELECTOR, "[data-control=reset] button").click()
        until(lambda: not buffer.is_circuit_breaker_open())
        until(lambda: text(browser, "[data-tile=circuit]") == "closed")
        # In this tab only: neither in a cookie nor where other tabs would find it.
        assert browser.get_cookies() == []
        assert browser.execute_script("return localStorage.length") == 0
        assert TOKEN not in browser.page_source
        browser.find_element(By.CSS_SELECTOR, "#token-form button").click()
        assert browser.execute_script("return sessionStorage.length") == 0
        browser.get("about:blank")


def test_a_lost_connection_is_shown_and_heals(
    browser: webdriver.Chrome, buffer: BufferManager
) -> None:
    with serving(buffer) as address:
        browser.get(f"{address}/buffer/")
        until(lambda: text(browser, "#connection .text") == "live")
        assert not browser.find_element(By.ID, "lost").is_displayed()
    until(lambda: browser.find_element(By.ID, "lost").is_displayed())
    assert "Connection lost" in text(browser, "#lost")
    assert text(browser, "#connection .text") == "connection lost"
    assert text(browser, "#health .text") == "unknown"
    buffer.adjust_batch_size(7654)  # while no client can see it
    with serving(buffer, port=int(address.rpartition(":")[2])):
        until(lambda: text(browser, "#connection .text") == "live")
        assert not browser.find_element(By.ID, "lost").is_displayed()
        until(lambda: "7,654" in text(browser, "#feed"))
        until(lambda: text(browser, "[data-tile=batch]") == "7.7K")
        browser.get("about:blank")


def test_it_can_be_used_by_keyboard_and_on_a_phone(
    browser: webdriver.Chrome, buffer: BufferManager
) -> None:
    with serving(buffer) as address:
        size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            browser.get(f"{address}/buffer/")
            until(lambda: text(browser, "#connection .text") == "live")
            until_painted(browser)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
            # The choice of a sink is hidden where there is none.
            for button in browser.find_elements(
                By.CSS_SELECTOR, "button, input, select:not(#sink)"
            ):
                assert button.size["height"] >= 44
            reached = []
            for _ in range(12):
                browser.switch_to.active_element.send_keys(Keys.TAB)
                active = browser.switch_to.active_element
                reached.append(active.get_attribute("id") or active.text)
                if active.text.startswith("Reset"):
                    break
            assert [one for one in reached if one] == [
                *("Skip to the controls", "window", "feed", "token", "Use", "rate", "Set rate"),
                *("batch", "Set batch size", "Reset the circuit breaker"),
            ]
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        Select(browser.find_element(By.ID, "window")).select_by_value("60")
        browser.get("about:blank")


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast as WCAG 2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (FILES / "dashboard.css").read_text(), re.DOTALL)
    colours = dict(
        re.findall(
            r"--([\w-]+): (#[0-9a-f]{6})", blocks[0] + (blocks[1] if scheme == "dark" else "")
        )
    )
    for front, back in (
        *(("text", "card"), ("text", "page"), ("soft", "card"), ("soft", "page")),
        *(("good", "good-back"), ("warn", "warn-back"), ("bad", "bad-back")),
        *(("bad", "card"), ("good", "card"), ("accent", "card"), ("on-accent", "accent")),
    ):
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    for line in ("in", "out", "refused", "delay", "threshold", "batch", "pressure", "circuit"):
        assert contrast(colours[line], colours["card"]) >= 3.0, line
    # Neighbours in the stack differ in lightness, which everyone can see.
    ladder = [luminance(colours[f"p{priority}"]) for priority in range(1, 6)]
    assert ladder == sorted(ladder)
    assert all(contrast(colours[f"p{n}"], colours[f"p{n + 1}"]) > 1.15 for n in range(1, 5))


def test_it_works_in_the_dark(browser: webdriver.Chrome, buffer: BufferManager) -> None:
    def prefer(scheme: str) -> None:
        media: dict[str, Any] = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    with serving(buffer) as address:
        prefer("light")
        browser.get(f"{address}/buffer/")
        until_painted(browser)
        light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        prefer("dark")
        assert (
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            != light
        )
        until_painted(browser)
        prefer("light")
        browser.get("about:blank")
