"""The page of the server in a real browser, with a stub's answers, under the content security policy that it needs."""

import json
import re
import shutil

import pytest

from tests.stub_server import PAGE, Stub, refusal, serving

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 20  # seconds, of which a page takes a few hundredths
TEXT = "The 🎸 band <b>x</b> plays in Berlin."

OVERLAPPING = [  # around each other, with the same span, across each other
    {"start": 0, "end": 10, "text": "The 🎸 band", "label": "group", "score": 0.9},
    {"start": 6, "end": 10, "text": "band", "label": "band", "score": 0.8},
    {"start": 6, "end": 10, "text": "band", "label": "city", "score": 0.7},
    {"start": 6, "end": 16, "text": "band <b>x<", "label": "day", "score": 0.6},
]

# The least contrast of a text with what is behind it: https://www.w3.org/TR/WCAG22/#contrast-minimum
CONTRAST = """
const pixel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const colour = css => {
  pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = css; pixel.fillRect(0, 0, 1, 1);
  return [...pixel.getImageData(0, 0, 1, 1).data];
};
const over = (top, under) => under.map((value, i) => i < 3 ? top[i] * top[3] / 255 + value * (1 - top[3] / 255) : 255);
const behind = element => element === null ? [255, 255, 255, 255]
  : over(colour(getComputedStyle(element).backgroundColor), behind(element.parentElement));
const linear = value => value <= 0.03928 * 255 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), ratios = [];
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !element.getClientRects().length) continue;
  const back = behind(element), front = over(colour(getComputedStyle(element).color), back);
  const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
  ratios.push((high + 0.05) / (low + 0.05));
}
return [ratios.length, Math.min(...ratios)];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra browser (selenium)")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--lang=en",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


class Page:
    """The page of one stub, as a user sees it."""

    def __init__(self, browser, stub):
        self.browser, self.stub = browser, stub
        self.look("light", 1280)
        browser.get(stub.url)
        self.until(lambda: self["about"].text or self["error"].is_displayed())  # the models, or why there are none

    def look(self, scheme, width):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def __getitem__(self, name):
        return self.browser.find_element("id", name)

    def until(self, holds):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, WAIT, 0.02).until(lambda browser: holds())

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def press_with_control(self, key):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.browser).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def focused(self):
        return self.browser.switch_to.active_element.get_attribute("id")

    def fill(self, text, labels):
        for name, value in (("text", text), ("labels", labels)):
            self.browser.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
                self[name],
                value,
            )

    def ask(self, text=TEXT, labels="band\nplace: berlin"):
        self.fill(text, labels)
        return self.run()

    def run(self):
        """Press the button; return the body of the request, when its answer is on show."""
        from selenium.webdriver.common.keys import Keys

        count = len(self.stub.requests)
        self["run"].send_keys(Keys.ENTER)
        self.until(lambda: len(self.stub.requests) > count and not self["busy"].is_displayed())
        return self.stub.requests[-1][1]

    def rows(self):
        rows = self.browser.find_elements("css selector", "#rows tr")
        return [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]

    def marks(self):
        """Each mark's text and what stands in it, by the DOM."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll('#marked mark')].map(mark => mark.textContent)"
        )


@pytest.fixture
def stub():
    with serving(Stub()) as stub:
        yield stub


@pytest.fixture
def page(browser, stub):
    page = Page(browser, stub)
    yield page
    refused = [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert refused == []


def test_entities_are_marked_at_their_code_points(page):
    body = page.ask()
    assert body == {
        "text": TEXT, "labels": {"band": "band", "place": "berlin"}, "threshold": 0.5, "flat": True,
        "multi_label": False, "model": "small",
    }  # fmt: skip
    assert page.marks() == ["bandband\u00a00.75", "Berlinplace\u00a00.75"]
    assert page.rows() == [["band", "band", "0.7500", "6–10"], ["Berlin", "place", "0.7500", "29–35"]]
    assert page["marked"].get_attribute("textContent").startswith("The 🎸 band")
    assert "<b>x</b>" in page["marked"].text and page.browser.find_elements("css selector", "#marked b") == []
    assert page["status"].text.startswith("2 entities in ")
    assert [chip.text for chip in page["chips"].find_elements("tag name", "li")] == ["band 1", "place 1"]


def test_entities_inside_and_across_each_other(page, monkeypatch):
    monkeypatch.setattr("tests.stub_server.found", lambda text, labels: OVERLAPPING)
    page["flat"].click()
    page["multi_label"].click()
    body = page.ask(labels="group, band, city\nday")
    assert (body["flat"], body["multi_label"], body["labels"]) == (False, True, ["group", "band", "city", "day"])
    assert page.marks() == [
        "The 🎸 bandcity\u00a00.70band\u00a00.80group\u00a00.90",
        "bandcity\u00a00.70band\u00a00.80",  # the piece of "day" around the two
        "bandcity\u00a00.70band\u00a00.80",
        "bandcity\u00a00.70",
        " <b>x<day\u00a00.60",
    ]
    small = page.browser.execute_script(
        "for (const e of document.querySelectorAll('#marked small')) e.remove(); return marked.textContent"
    )
    assert small == TEXT


def test_what_was_not_read_is_said(page):
    page.ask(text="band cut cut")
    assert page["notes"].text == "2 words at the end were not read."


def test_nothing_found(page):
    page.ask(text="nobody")
    assert page["status"].text.startswith("Nothing found above 0.50.")
    assert not page["wide"].is_displayed() and page["marked"].text == "nobody"


def test_a_refusal_names_its_field(page):
    page.stub.script = [refusal(422, "labels[1]", "labels[1]: expected a shorter label")]
    page.ask()
    assert page["error"].text == "Field: labels[1]\nlabels[1]: expected a shorter label"
    assert page["error"].get_attribute("role") == "alert" and page.focused() == "labels"
    assert page["labels"].get_attribute("aria-invalid") == "true" and not page["result"].is_displayed()
    page.run()
    assert not page["error"].is_displayed() and page["labels"].get_attribute("aria-invalid") is None
    assert page["labels"].get_attribute("aria-describedby") == "labels-hint" and page["result"].is_displayed()


def test_without_labels_nothing_is_asked(page):
    page.fill(TEXT, " , \n")
    count = len(page.stub.requests)
    page["run"].click()
    page.until(lambda: page["error"].is_displayed())
    assert "labels: expected at least one label" in page["error"].text and len(page.stub.requests) == count


@pytest.mark.parametrize(
    ("status", "says"), [(429, "The server has too much to do."), (503, "The server is not ready.")]
)
def test_a_busy_server_says_when(page, status, says):
    page.stub.script = [refusal(status, None, "server: busy", Retry_After="7")]
    page.ask()
    assert page["error"].text.splitlines()[:2] == [says, "server: busy"]
    assert re.search(r"Try again in 7 s, at \d", page["error"].text)


def test_no_answer(page):
    page.stub.script = [refusal(500)._replace(body=b"<html>")]
    page.ask()
    assert page["error"].text == "The server refused this.\nThe server answered 500, and not in JSON."


def test_a_token_is_asked_for_and_forgotten(browser, stub):
    stub.token = "s3cret"
    page = Page(browser, stub)
    page.until(lambda: page["token"].is_displayed() and page.focused() == "token")
    assert "The server asks for a token." in page["error"].text
    page.press("wrong")
    page.ask()
    assert "The server does not know this token." in page["error"].text
    page["token"].clear()
    page["token"].send_keys("s3cret")
    page.ask()
    assert page.marks() and stub.headers[-1]["Authorization"] == "Bearer s3cret"
    kept = browser.execute_script(
        "return [localStorage.length, sessionStorage.length, document.cookie, location.search]"
    )
    assert kept == [0, 0, "", ""]
    browser.refresh()
    page.until(lambda: page["token"].is_displayed())
    assert page["token"].get_attribute("value") == ""


def test_models_and_thresholds(page):
    assert not page["calibrated"].is_displayed()
    page["model"].send_keys("large")
    page["calibrated"].click()
    body = page.ask()
    assert (body["model"], body["threshold"]) == ("large", "calibrated")
    page["calibrated"].click()
    page.browser.execute_script("threshold.value = 0.3; threshold.dispatchEvent(new Event('input', {bubbles: true}))")
    assert page["shown"].text == "0.30" and page.run()["threshold"] == 0.3


def test_one_model_is_no_choice(browser, stub):
    stub.models = stub.models[:1]
    page = Page(browser, stub)
    assert "model" not in page.ask() and not page["model"].is_displayed()
    assert page["about"].text.startswith("small: fp32, reads 384 words")


@pytest.mark.parametrize("way", ["escape", "button"])
def test_a_request_can_be_stopped(page, way):
    from selenium.webdriver.common.keys import Keys

    page.stub.free.clear()
    page.fill(TEXT, "band")
    page["run"].send_keys(Keys.ENTER)
    page.until(lambda: page["stop"].is_displayed() and page["busy"].is_displayed())
    assert page["status"].text == "Reading the text…"
    page.press(Keys.ESCAPE) if way == "escape" else page["stop"].click()
    page.until(lambda: page["status"].text == "Stopped.")
    assert not page["stop"].is_displayed() and page.focused() == "run" and not page["error"].is_displayed()
    page.stub.free.set()
    page.run()
    assert page.marks() == ["bandband\u00a00.75"]


def test_redaction(page):
    page.browser.find_element("css selector", "[value=redact]").click()
    assert page["run"].text == "Redact"
    page["style"].send_keys("masks")
    body = page.ask()
    labels = {"band": "band", "place": "berlin"}
    assert page.stub.requests[-1][0] == "/v1/redact"
    assert body == {"text": TEXT, "labels": labels, "threshold": 0.5, "style": "mask", "model": "small"}
    assert not page["flat"].is_enabled() and not page["multi_label"].is_enabled()
    assert page.marks() == ["[BAND_1]band", "[PLACE_2]place"]
    assert page["marked"].get_attribute("textContent") == "The 🎸 [BAND_1]band <b>x</b> plays in [PLACE_2]place."
    assert page.rows()[0] == ["band", "band", "[BAND_1]", "0.7500", "6–10"]


def test_by_keyboard_alone(page):
    from selenium.webdriver.common.keys import Keys

    page["model"].send_keys("")  # where Tab starts
    order = []
    for _ in range(9):
        order.append(page.focused())
        page.press(Keys.TAB)
    assert order == [
        "model",
        "text",
        "example",
        "labels",
        "threshold",
        "flat",
        "multi_label",
        "",
        "run",
    ]  # "": the radio
    outline = "const style = getComputedStyle(arguments[0]); return [style.outlineStyle, style.outlineWidth]"
    page["text"].send_keys("a band in berlin")
    assert page.browser.execute_script(outline, page["text"]) == ["solid", "2px"]
    page.press(Keys.TAB, Keys.TAB, "band, berlin")
    page.press_with_control(Keys.ENTER)
    page.until(lambda: page["result"].is_displayed())
    assert page.marks() == ["bandband\u00a00.75", "berlinberlin\u00a00.75"] and page.focused() == "labels"
    for name in ("text", "labels", "threshold", "flat", "multi_label", "model"):
        assert page[name].accessible_name, name
    assert page["status"].get_attribute("role") == "status"


def test_the_example_finds_something_to_ask(page):
    page["example"].click()
    assert page.focused() == "text" and len(page["chips"].find_elements("tag name", "li")) == 4
    assert page.run()["labels"] == ["surgeon", "hospital", "band", "city"]


def test_the_json_is_the_servers(page):
    page.ask()
    page.browser.execute_script(
        "navigator.clipboard.writeText = text => { document.title = text; return Promise.resolve(); }"
    )
    page["copy"].click()
    page.until(lambda: page["copied"].text == "Copied.")
    copied = json.loads(page.browser.execute_script("return document.title"))
    assert [entity["start"] for entity in copied["entities"]] == [6, 29] and copied["model"] == "small"
    page.browser.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('not lent'))")
    page["copy"].click()
    page.until(lambda: page["json"].is_displayed())
    assert json.loads(page["json"].get_attribute("value")) == copied and page.focused() == "json"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_is_legible(page, monkeypatch, scheme, width):
    page.look(scheme, width)
    each = [{"start": 17 + i, "end": 18 + i, "text": "x", "label": "abcdefgh"[i], "score": 0.5} for i in range(8)]
    monkeypatch.setattr("tests.stub_server.found", lambda text, labels: OVERLAPPING + each)
    page.ask(text=TEXT + " " + "long" * 40, labels="a,b,c,d,e,f,g,h,group,band,city,day," + "label" * 30)
    texts, least = page.browser.execute_script(CONTRAST)
    assert texts > 60 and least >= 4.5
    content, window = page.browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert content == window


def test_the_page_names_no_other_host_and_no_inline_handler():
    source = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"https?://|//[\w-]+\.\w+/", source) == []
    assert re.findall(r"<[^>]*\s(?:on\w+|style)=", source.split("<script>")[0]) == [] and "innerHTML" not in source
    assert len(re.findall(r"<style>|<script>", source)) == 2
