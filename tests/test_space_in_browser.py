"""
The Space itself, in a real browser: `make test-slow`, in an environment with Gradio and Selenium, where Chromium is.

It needs no torch.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from checkout import ROOT
from space_record import HOSTILE, hostile_group, made_up_group, write_record

from trl_dapo.report.shards import RolloutShards


pytest.importorskip("gradio")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,1000",
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run")
    rows = write_record(folder)
    shards = RolloutShards(folder, ["accuracy"])
    shards.add(hostile_group(24, 999), {"step": 24, "filter_reward": "accuracy", "groups": {"all_wrong": 1}})
    for step in range(1, 25):
        shards.add_logs({"step": step, "loss": 1 / step, "dapo/sampled_accuracy": step / 24, "dapo/entropy": 0.5})
    (folder / "results.json").write_text(json.dumps({"accuracy_after": 0.75, "<b>bold": 1.0}))
    facts = {
        "model_name": "tiny-dapo",
        "base_model": "tiny",
        "settings": {"beta": [0.1, 0.0]},
        "step": 24,
        "num_steps": 60,
    }
    (folder / "run_facts.json").write_text(json.dumps(facts))
    return folder, rows


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A run with other completions of some of the prompts, and one that recorded no groups."""
    again, nothing = (tmp_path_factory.mktemp(name) for name in ("again", "nothing"))
    write_record(again, num_batches=2)
    (again / "run_facts.json").write_text(json.dumps({"model_name": "again", "settings": {"beta": [0.2, 0.0]}}))
    (again / "log_history.jsonl").write_text('{"start": 0, "step": 1, "loss": 2.0}\n')
    (nothing / "log_history.jsonl").write_text('{"start": 0, "step": 1, "loss": 2.0}\n')
    return again, nothing


@pytest.fixture(scope="module")
def address(record, others, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(ROOT / "hub" / "space" / "app.py"),
        *map(str, (record[0], *others)),
        "--port",
        str(port),
    ]
    # A Hub that refuses every connection: nothing in these tests should reach the real one.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
    url = f"http://127.0.0.1:{port}/"
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(url).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    until(browser, lambda: len(rows_of(browser)) == 20)
    return browser


def until(browser, is_so):
    WebDriverWait(browser, 60, ignored_exceptions=[Exception]).until(lambda _: is_so())


def find(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def rows_of(browser):
    return find(browser, "#rows .row")


def text_of(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def search(browser, field, text):
    entry = find(browser, f"#{field} textarea, #{field} input")[0]
    entry.send_keys(Keys.CONTROL, "a")
    entry.send_keys(Keys.DELETE, text, Keys.ENTER)


def is_hacked(browser):
    return browser.execute_script("return window.hacked !== undefined")


def open_tab(browser, name):
    next(tab for tab in find(browser, "button[role=tab]") if tab.text == name).click()


def number_of_groups(browser):
    words = text_of(browser, "#position").split()
    return int(words[2].replace(",", "")) if len(words) == 4 else 0


def test_page_shows_the_run_and_asks_nobody_else_for_anything(page, record):
    assert number_of_groups(page) == 55
    assert "75.0%" in text_of(page, "#headings")
    assert "<b>bold" in text_of(page, "#headings")
    first = record[1][0]
    assert first["prompt"] in text_of(page, "#detail")
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in sent if entry["method"] == "Network.requestWillBeSent"]
    hosts = {urllib.parse.urlsplit(url).hostname for url in urls if url.startswith("http")}
    assert hosts == {"127.0.0.1"}
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_click_opens_a_group_with_all_its_completions(page, record):
    rows_of(page)[7].click()
    group = [row for row in record[1] if row["position"] == 7]
    until(page, lambda: group[0]["prompt"] in text_of(page, "#detail .part pre"))
    cards = find(page, "#detail .card")
    assert len(cards) == 4
    for card, row in zip(cards, group, strict=True):
        shown = card.find_element(By.TAG_NAME, "pre").get_attribute("textContent")
        assert shown == (row["completion"] or "empty")
        assert f"{row['length']} tokens" in card.text
        assert ("truncated" in card.text) == row["is_truncated"]
    assert "chosen" in rows_of(page)[7].get_attribute("class")


def test_run_is_named_and_its_settings_are_shown(page, record):
    assert "tiny-dapo" in text_of(page, "#headings h3")
    assert str(record[0]) in text_of(page, "#headings h3")
    assert "model tiny, steps 24 of 60" in text_of(page, "#headings")
    open_tab(page, "Settings")
    until(page, lambda: "beta0.10.0" in text_of(page, "#settings tbody"))


def test_two_runs_are_compared_from_the_page_and_from_the_address(page, record, others, address):
    entry = find(page, "#other input")[0]
    entry.send_keys(str(others[0]), Keys.ENTER)
    until(page, lambda: len(find(page, "#headings h3")) == 2)
    link = page.current_url
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(link).query) == {
        "run": [str(record[0])],
        "with": [str(others[0])],
    }
    page.get(link)
    until(page, lambda: len(find(page, "#detail .pair > div")) == 2)
    # Both records begin with the same prompt, by the same seed.
    sides = [side.find_element(By.CSS_SELECTOR, ".part pre") for side in find(page, "#detail .pair > div")]
    assert [side.get_attribute("textContent") for side in sides] == [record[1][0]["prompt"]] * 2
    assert [title.text for title in find(page, "#detail h4.title")] == [str(record[0]), str(others[0])]
    rows_of(page)[19].click()
    until(page, lambda: "has no record of a group of this prompt" in text_of(page, "#detail"))
    open_tab(page, "Settings")
    until(page, lambda: "beta0.10.20.0" in text_of(page, "#settings tbody"))
    open_tab(page, "Curves")
    until(page, lambda: find(page, "#curves svg")[0].is_displayed())
    assert len(find(page, "#curves polyline.other")) == 1  # the loss; the other metrics are of the first run alone


def test_run_without_a_record_says_how_to_get_one(browser, address, others):
    browser.get(f"{address}?run={urllib.parse.quote(str(others[1]))}")
    until(browser, lambda: "Set num_groups_to_log" in text_of(browser, "#rows"))


def test_click_on_a_narrow_screen_brings_the_group_into_view(page):
    page.set_window_size(500, 900)
    try:
        until(page, lambda: page.execute_script("return window.innerWidth") < 900)
        assert page.execute_script("return document.querySelector('#detail').getBoundingClientRect().top") > 800
        rows_of(page)[7].click()
        # At the top, or as high as the end of the page lets it.
        top = "return document.querySelector('#detail').getBoundingClientRect().top"
        until(page, lambda: -50 < page.execute_script(top) < 500)
    finally:
        page.set_window_size(1440, 1000)


def test_pages_go_forth_and_back(page):
    find(page, "#forth")[0].click()
    until(page, lambda: text_of(page, "#position").strip() == "21-40 of 55 groups")
    find(page, "#forth")[0].click()
    until(page, lambda: len(rows_of(page)) == 15)
    find(page, "#back")[0].click()
    until(page, lambda: text_of(page, "#position").strip() == "21-40 of 55 groups")


def test_filters_leave_what_they_ask_for(page, record):
    entry = find(page, "#verdicts input")[0]
    entry.click()
    until(page, lambda: find(page, "[role=option]"))
    next(option for option in find(page, "[role=option]") if "all_correct" in option.text).click()
    asked = {row["position"] for row in record[1] if row["verdict"] == "all_correct"}
    until(page, lambda: number_of_groups(page) == len(asked))
    assert {row.find_element(By.CSS_SELECTOR, ".chip").text for row in rows_of(page)} == {"all correct"}
    search(page, "steps", "8..12")
    asked = {row["position"] for row in record[1] if row["verdict"] == "all_correct" and 8 <= row["step"] <= 12}
    until(page, lambda: number_of_groups(page) == len(asked))


def test_text_is_found_and_marked(page, record):
    search(page, "text", "ÄPFEL")
    asked = {row["position"] for row in record[1] if "Äpfel" in row["prompt"] + row["completion"]}
    until(page, lambda: number_of_groups(page) == len(asked))
    until(page, lambda: find(page, "#detail mark"))
    assert {mark.text for mark in find(page, "#detail mark")} == {"Äpfel"}


def test_range_that_cannot_be_read_is_explained(page):
    search(page, "steps", "<img src=x onerror=window.hacked=1>")
    until(page, lambda: "must be a range like 10..50" in find(page, "body")[0].text)
    assert "<imgsrc=xonerror" in find(page, "body")[0].text
    search(page, "steps", "9..3")
    until(
        page,
        lambda: "Steps is '9..3', but its first number must not be above the second" in find(page, "body")[0].text,
    )
    assert not is_hacked(page)


def test_nothing_that_a_model_wrote_runs(page):
    search(page, "steps", "25")
    until(page, lambda: number_of_groups(page) == 1)
    rows_of(page)[0].click()
    until(page, lambda: len(find(page, "#detail .card")) == len(HOSTILE))
    assert find(page, "#rows img, #rows script, #rows a, #detail img, #detail script, #detail svg, #detail a") == []
    shown = [pre.get_attribute("textContent") for pre in find(page, "#detail .card pre")]
    for text, seen in zip(HOSTILE, shown, strict=True):
        if "\x00" not in text:
            assert seen == text
    for text in (HOSTILE[0], HOSTILE[5]):
        search(page, "text", text)
        until(page, lambda text=text: any(mark.text == text for mark in find(page, "#detail mark")))
    assert page.execute_script("return getComputedStyle(document.body).display") != "none"
    assert not is_hacked(page)


def test_name_in_a_link_is_text_too(browser, address):
    browser.get(f"{address}?run={urllib.parse.quote('<img src=x onerror=window.hacked=1>')}")
    until(browser, lambda: "is not a model or dataset repository" in find(browser, "body")[0].text)
    assert not is_hacked(browser)


def test_folder_that_was_not_named_cannot_be_opened(browser, address, tmp_path):
    write_record(tmp_path)
    browser.get(f"{address}?run={urllib.parse.quote(str(tmp_path))}")
    until(browser, lambda: "is not a model or dataset repository" in find(browser, "body")[0].text)
    for path in ("/etc/passwd", str(tmp_path / "rollouts" / "groups-000-000000.parquet"), "../app.py"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}gradio_api/file={path}")


def test_curves_are_drawn(page):
    open_tab(page, "Curves")
    until(page, lambda: find(page, "#curves svg")[0].is_displayed())
    titles = [caption.text for caption in find(page, "#curves figcaption")]
    assert titles == ["Groups sampled, by what became of them", "Accuracy", "Entropy (nats per token)", "Loss"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser, address, theme):
    browser.get(f"{address}?__theme={theme}")
    until(browser, lambda: len(rows_of(browser)) == 20)
    colors = browser.execute_script(
        "const style = getComputedStyle(document.querySelector('#detail .card pre'));"
        "return [style.color, style.backgroundColor]"
    )
    text, ground = (luminance(color) for color in colors)
    assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 7  # WCAG 2, level AAA
    assert (ground < text) == (theme == "dark")


def luminance(color):
    """Relative luminance by WCAG 2."""
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_refresh_shows_what_the_run_has_written_since(page, record):
    folder = record[0]
    shards = RolloutShards(folder, ["accuracy"])
    shards.add(made_up_group(random.Random(2), 28, 2000), {"step": 28})
    find(page, "#refresh")[0].click()
    until(page, lambda: number_of_groups(page) == 56)
