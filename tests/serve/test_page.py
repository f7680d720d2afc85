"""The page in headless Chromium, driven as a person would: at a desk and on a phone."""

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from swift_sd import Swift, SwiftConfig
from swift_sd.serve.limits import Limits
from swift_sd.testing.planted import planted_model

WIDTHS = {"phone": 390, "desk": 1280}
WATCH = """
    window.watched = new Set();
    const note = (told) => told
        .filter((one) => one.target.classList.contains("changed"))
        .forEach((one) => watched.add(one.target));
    const map = document.getElementById("map");
    new MutationObserver(note).observe(map, {attributeFilter: ["class"], subtree: true});
"""  # the cells of the map that are ever marked as changed; a mark goes with the next message


class Page:
    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get("about:blank")  # what the page before complains of is not this one's
        driver.get_log("browser")
        driver.get(url)
        self.wait(lambda: self.all("#model option"))

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str):
        return self.driver.execute_script(f"return {script}")

    def wait(self, condition, seconds: float = 120):
        return WebDriverWait(self.driver, seconds, 0.1).until(lambda driver: condition())

    def say(self, text: str, tokens: int = 40) -> None:
        self.run(f"document.getElementById('longest').value = {tokens}")
        self.one("#text").send_keys(text, Keys.ENTER)

    def answer(self) -> str:
        """The last answer, once it is complete."""
        self.wait(lambda: self.all(".assistant .cost") and not self.all(".running"))
        return self.all(".assistant .text")[-1].get_property("textContent")

    def skipped(self) -> int:
        return len(self.all("#map i.skipped"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(browser, tmp_path_factory):
    chromium, chromedriver = browser
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield made
    made.quit()


@pytest.fixture(params=WIDTHS)
def page(request, driver, server):
    is_phone = request.param == "phone"
    size = {"width": WIDTHS[request.param], "height": 800, "deviceScaleFactor": 1}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "mobile": is_phone})
    return Page(driver, server.url)


def test_a_chat_to_its_end(page, plain):
    page.say("Hello there")
    first = page.answer()
    messages = [{"role": "user", "content": "Hello there"}]
    assert first == plain(messages, 40)
    origins = {span.get_dom_attribute("class") for span in page.all(".assistant .token")}
    assert {"token ", "token drafted"} <= origins
    assert "from drafts" in page.one(".cost").text

    page.say("And?")
    page.wait(lambda: len(page.all(".assistant .cost")) == 2)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And?"}]
    assert page.answer() == plain(messages, 40)
    assert page.complaints() == []


def test_nothing_is_cut_off_or_wider_than_the_window(page):
    page.say("x" * 300)
    page.answer()
    width = page.run("innerWidth")
    assert page.run("document.documentElement.scrollWidth") <= width
    for selector in ("#text", "#send", ".cost", "#model"):
        box = page.all(selector)[-1].rect
        assert box["x"] >= 0, selector
        assert box["x"] + box["width"] <= width, selector


def test_the_instruments_show_what_the_server_measured(page):
    page.say("Hello there")
    page.answer()
    if not page.one("#instruments").is_displayed():
        page.one("#inside").click()
    assert page.one("#instruments").is_displayed()
    page.wait(lambda: "tokens/s" in page.one("#glance").text)
    assert len(page.all("#map i")) == 2 * 4
    assert page.skipped() == 1
    assert len(page.all("#lengths i")) >= 2
    assert "1 attention and 0 MLP" in page.one("#skipped").text


# All at one moment: the page draws anew twice a second.
SPEED = """(() => {
  const bar = (name) => document.querySelector(`#speed .${name}`);
  const value = (name) => Number(bar(name).nextElementSibling.textContent.replaceAll(",", ""));
  const width = (name) => bar(name).firstChild.getBoundingClientRect().width;
  return {
    verdict: document.querySelector("#speed .verdict").textContent,
    values: [value("now"), value("plain")],
    widths: [width("now"), width("plain")],
  };
})()"""


def test_speed_is_shown_beside_that_of_plain_decoding(page):
    page.say("Hello there", 2)  # the second token, for which there is no room to draft, is plain
    page.answer()
    if not page.one("#instruments").is_displayed():
        page.one("#inside").click()
    page.wait(lambda: "times plain decoding" in page.run(SPEED)["verdict"])
    shown = page.run(SPEED)
    low, high = sorted(shown["values"])
    narrow, wide = sorted(shown["widths"])
    assert low > 0
    assert narrow / wide == pytest.approx(low / high, abs=0.05)


def test_all_is_reached_with_the_keyboard_alone(page):
    is_phone = not page.one("#instruments").is_displayed()
    keys = webdriver.ActionChains(page.driver)

    def press(key: str, shift: bool = False) -> str:
        chain = keys.key_down(Keys.SHIFT) if shift else keys
        chain.send_keys(key).key_up(Keys.SHIFT).perform()
        return page.run("document.activeElement.id")

    page.wait(lambda: page.run("document.activeElement.id") == "text")
    press("Hi" + Keys.ENTER)
    page.answer()
    before = ["log", "inside", "model"] if is_phone else ["log", "model"]
    assert [press(Keys.TAB, shift=True) for _ in before] == before
    if is_phone:
        assert press(Keys.TAB) == "inside"
        press(Keys.SPACE)
        assert page.one("#instruments").is_displayed()
        before.remove("inside")
    for name in before[-2::-1]:
        assert press(Keys.TAB) == name
    after = ["text", "send", "origins", "temperature", "longest", "reset"]
    for name in after:
        assert press(Keys.TAB) == name
        if name == "origins":
            press(Keys.SPACE)
            assert "unmarked" in page.one("body").get_dom_attribute("class")
    press(Keys.SPACE)
    assert not page.all(".message")
    assert page.complaints() == []


def test_escape_stops_an_answer(page, server, gate):
    page.say("Hello there", 200)
    page.wait(lambda: page.all(".running .token"))
    page.one("#text").send_keys(Keys.ESCAPE)
    page.wait(lambda: page.all(".cost"))
    assert page.one(".cost").text == "stopped"
    gate.set()
    assert server.idle()
    page.say("Hello again", 5)
    page.wait(lambda: len(page.all(".cost")) == 2)
    assert page.complaints() == []


def test_the_map_changes_as_the_search_moves(driver, serving, byte_model, bytes_tokenizer, clock):
    model, _ = planted_model(byte_model, extra_layers=6)
    config = SwiftConfig(eager_search=True, draft_bits=16)
    swift = Swift(model, bytes_tokenizer, config, clock=clock)
    with serving({"tiny": swift}, Limits()) as server:
        page = Page(driver, server.url)
        page.wait(lambda: len(page.all("#map i")) == 2 * 10)
        assert page.skipped() == 0
        page.driver.execute_script(WATCH)
        page.say("Hello there", 200)
        page.wait(lambda: page.skipped() > 0)
        page.answer()
        found = swift.layer_set
        page.wait(lambda: page.skipped() == len(found.attention) + len(found.mlp))
        assert page.run("watched.size") >= page.skipped()
        assert page.complaints() == []


def test_a_new_conversation_may_begin_during_an_answer(page, plain, gate):
    page.say("Hello there", 200)
    page.wait(lambda: page.all(".running .token"))
    is_hidden = not page.one("#instruments").is_displayed()
    if is_hidden:
        page.one("#inside").click()
    page.one("#reset").click()
    gate.set()
    if is_hidden:
        page.one("#inside").click()
    page.say("Something else")
    assert page.answer() == plain([{"role": "user", "content": "Something else"}], 40)
    assert page.complaints() == []


def test_a_key_is_asked_for(driver, serving, drafting_swift):
    with serving({"tiny": drafting_swift()}, Limits(), api_keys=("secret",)) as server:
        driver.get(server.url)
        wait = WebDriverWait(driver, 120, 0.1)
        field = driver.find_element(By.ID, "secret")
        wait.until(lambda _: field.is_displayed())
        field.send_keys("secret", Keys.ENTER)
        wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, "#model option"))


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_in_both_modes(driver, server, mode):
    """Contrast of text and background, WCAG 2.2: 4.5 to 1 at least."""
    features = [{"name": "prefers-color-scheme", "value": mode}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page = Page(driver, server.url)
    page.say("Hello there", 5)
    page.answer()

    def is_readable(selector):
        ink = _luminance(page.all(selector)[-1].value_of_css_property("color"))
        paper = _luminance(page.one("body").value_of_css_property("background-color"))
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        return (paper < 0.2) == (mode == "dark") and contrast >= 4.5

    for selector in (".text", ".cost", ".legend", "h2"):
        page.wait(lambda selector=selector: is_readable(selector))  # once it has come to rest


def _luminance(colour: str) -> float:
    numbers = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in numbers]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
