"""Make docs/dashboard.png: a buffer through a busy minute, as the dashboard shows it in
a real browser.

    python bench/demo/screenshot.py [OUT.png] [--dark] [--width 1280] [--seconds 75]

Needs the extra `http`, selenium, and Chromium with its driver (Debian: chromium,
chromium-driver). The load is a story: an even flow, a sink that slows down, one that
fails until the breaker opens, the recovery, and a rate that is lowered.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from backpressure import (
    AdaptiveBatchConfig,
    BackpressureMonitorConfig,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    FlowControlConfig,
)
from backpressure.http import make_server

LINE = (
    b'203.0.113.9 - - [17/May/2015:10:05:03 +0000] "GET /images/kibana-search.png HTTP/1.1"'
    b' 200 203023 "-" "Mozilla/5.0"'
)
# Events per second of each priority; the sink takes 60,000 when it is well.
LOAD = {1: 1_500, 2: 4_000, 3: 18_000, 4: 9_000, 5: 12_000}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", nargs="?", default=str(Path(__file__).parents[2] / "docs" / "dashboard.png")
    )
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument(
        "--seconds",
        type=float,
        default=75.0,
        help="how long the load runs before the picture is taken",
    )
    arguments = parser.parse_args()
    buffer = make_buffer()
    server = make_server(buffer, port=0, token="demo")
    done = threading.Event()
    begin = time.monotonic()
    threads = [
        threading.Thread(target=server.run),
        threading.Thread(target=produce, args=(buffer, done)),
        threading.Thread(target=consume, args=(buffer, done, begin, arguments.seconds)),
    ]
    for thread in threads:
        thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        picture(f"http://127.0.0.1:{port}/buffer/", arguments, buffer, begin)
    finally:
        done.set()
        server.should_exit = True
        for thread in threads:
            thread.join(30)
        buffer.close(timeout=0)
    print(arguments.out)
    return 0


def make_buffer() -> BufferManager:
    """Thresholds that a minute of a small load reaches."""
    return BufferManager(
        BufferConfig(
            lane_bytes=16 << 20,
            circuit_breaker=CircuitBreakerConfig(
                reset_timeout=2.0, min_requests=5, monitoring_interval=2.0, half_open_requests=3
            ),
            monitor=BackpressureMonitorConfig(
                queue_depth_threshold=200_000,
                monitoring_interval=1.0,
                min_dwell=2.0,
                recovery_factor=0.4,
                adaptive_thresholds=False,
            ),
            batching=AdaptiveBatchConfig(
                initial_batch_size=6_000,
                min_batch_size=500,
                max_batch_size=20_000,
                evaluation_interval=2.0,
                target_latency=0.15,
            ),
            flow_control=FlowControlConfig(max_events_per_second=100_000, burst_size=20_000),
        )
    )


def produce(buffer: BufferManager, done: threading.Event) -> None:
    rng = random.Random(11)
    swing = 1.0
    while not done.is_set():
        swing = min(1.35, max(0.7, swing + rng.uniform(-0.06, 0.06)))
        for priority, rate in LOAD.items():
            buffer.add_lines((LINE + b"\n") * int(rate * 0.05 * swing), priority=priority)
        done.wait(0.05)


def consume(buffer: BufferManager, done: threading.Event, begin: float, total: float) -> None:
    """A sink with moods: by the share of the story that is over."""
    while not done.is_set():
        batch = buffer.get_batch(timeout=0.1)
        if batch is None:
            continue
        part = (time.monotonic() - begin) / total
        capacity = 40_000 if 0.28 < part < 0.40 else 130_000
        done.wait(0.004 + len(batch) / capacity)
        if 0.58 < part < 0.63:
            batch.nack("connection refused by 10.0.0.7:9200")
        else:
            batch.ack()


def picture(url: str, arguments: argparse.Namespace, buffer: BufferManager, begin: float) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        sys.exit("this needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--hide-scrollbars",
            ),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, Service(driver))
        try:
            scheme = "dark" if arguments.dark else "light"
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            size = {
                "width": arguments.width,
                "height": 800,
                "deviceScaleFactor": 1,
                "mobile": arguments.width < 600,
            }
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(url)
            # The whole page, however tall it is.
            size["height"] = browser.execute_script("return document.documentElement.scrollHeight")
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            Select(browser.find_element(By.ID, "window")).select_by_value("60")
            while (elapsed := time.monotonic() - begin) < arguments.seconds:
                if (
                    elapsed > 0.88 * arguments.seconds
                    and buffer.stats().flow_control.rate_limit > 90_000
                ):
                    buffer.adjust_flow_control_rate(90_000, by="http 127.0.0.1:53822")
                time.sleep(0.2)
            browser.execute_script("document.activeElement.blur()")
            browser.save_screenshot(arguments.out)
        finally:
            browser.quit()


if __name__ == "__main__":
    sys.exit(main())
