"""The chat page in headless Chromium, against servers that say what a test wants."""

import shutil

import pytest

from waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the chat page is driven by playwright (pip)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; apt install chromium")
    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM) as started:
        yield started


class Page:
    """A tab with the chat page."""

    def __init__(self, tab, complaints):
        self.tab = tab
        self.complaints = complaints
        self.sent = []

    def __getattr__(self, name):
        return getattr(self.tab, name)

    def ask(self, question):
        self.tab.get_by_label("Message", exact=True).fill(question)
        self.tab.keyboard.press("Enter")

    def answers(self, count=1):
        """Wait until so many answers are complete, and return what they say."""
        self.tab.wait_for_function(
            "count => document.querySelectorAll('.answer .tools').length === count", arg=count, timeout=10_000
        )
        return self.tab.locator(".answer .text").all_inner_texts()

    def kept(self):
        names = "Object.keys(localStorage).filter(name => name.startsWith('herdsman.conversation.'))"
        return self.tab.evaluate(f"{names}.map(name => JSON.parse(localStorage.getItem(name)))")

    def setting(self, name, value):
        self.tab.get_by_role("button", name="Settings").click()
        self.tab.locator(f"#settings [name={name}]").fill(value)
        self.tab.keyboard.press("Escape")


@pytest.fixture(scope="module")
def contexts(browser):
    """Browsers by their options; what one keeps belongs to the port of a server, so tests do not meet in it."""
    made = {}

    def context(options):
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = browser.new_context(**{"locale": "en-GB", **options})
        return made[key]

    return context


@pytest.fixture
def open_page(contexts):
    """Open the page of a server in a browser that has never seen it; what the browser complains about fails a test."""
    opened = []

    def start(client, *, models=True, **options):
        tab = contexts(options).new_page()
        tab.set_default_timeout(8_000)
        page = Page(tab, [])
        tab.on("pageerror", lambda error: page.complaints.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
        tab.on("request", lambda request: request.post_data and page.sent.append(request.post_data_json))
        opened.append(page)
        tab.goto(client.url)
        if models:
            tab.locator("#model-0 option[value*=demo]").wait_for(state="attached")
        return page

    yield start
    for page in opened:
        page.tab.evaluate("() => localStorage.clear()")  # another server may get this port
        page.tab.close()
    for page in opened:
        assert [each for each in page.complaints if "status of 4" not in each] == []


def test_a_question_is_answered_and_the_conversation_is_kept(serve, open_page):
    page = open_page(serve("the river flows"))
    page.ask("Where does it go?")
    assert page.answers() == ["the river flows"]
    assert "tokens in" in page.locator(".answer .tools").inner_text()
    page.reload()
    page.get_by_role("button", name="Where does it go?", exact=True).click()
    assert page.answers() == ["the river flows"]


def test_a_text_with_markup_is_shown_as_text_and_code_as_code(serve, open_page):
    said = "<img src=x onerror=alert(1)>\n```python\nprint('<b>')\n```\nand `inline`"
    page = open_page(serve(said))
    page.ask("<script>alert(2)</script>")
    page.answers()
    assert page.locator(".answer .text img, .asked .text script").count() == 0
    assert page.locator(".asked .text").inner_text() == "<script>alert(2)</script>"
    assert page.locator(".answer pre code").inner_text() == "print('<b>')"
    assert page.locator(".answer :not(pre) > code").inner_text() == "inline"


def test_the_system_prompt_the_sampling_and_the_earlier_turns_are_sent(serve, open_page):
    page = open_page(serve("a b"))
    page.setting("system", "Be brief.")
    page.setting("temperature", "0.7")
    page.setting("max_tokens", "5")
    page.setting("top_p", "3")  # out of its range: not sent
    page.ask("One?")
    page.answers(1)
    page.ask("Two?")
    page.answers(2)
    assert page.sent[-1] == {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "a b"},
            {"role": "user", "content": "Two?"},
        ],
        "temperature": 0.7,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_an_answer_is_stopped_and_what_was_said_stays(serve, open_page, way):
    client = serve("the river flows on and on")
    client.engine.hold_at = 4
    page = open_page(client)
    page.ask("Go")
    page.locator(".answer .text", has_text="the").wait_for()
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    (text,) = page.answers()
    assert "the river flows on and on".startswith(text)
    assert "stopped" in page.locator(".answer .tools").inner_text()
    client.engine.hold_at = None
    client.engine.go_on.set()
    page.ask("Again")
    assert page.answers(2) == [text, "the river flows on and on"]
    assert client.engine.said < 2 * len(client.engine._ids), "the server stopped too"


def test_retry_asks_again_and_edit_replaces_what_follows(serve, open_page):
    client = serve("a b")
    page = open_page(client)
    for count, question in enumerate(["One?", "Two?"], 1):
        page.ask(question)
        page.answers(count)
    page.get_by_role("button", name="Retry").click()
    wait_until(lambda: len(client.engine.calls) == 3, "it is asked again")
    page.answers(2)
    page.get_by_role("button", name="Edit and ask again").first.click()
    page.get_by_role("textbox", name="Edit and ask again").fill("Three?")
    page.keyboard.press("Enter")
    wait_until(lambda: len(client.engine.calls) == 4, "the edited question is asked")
    page.answers(1)
    assert page.locator(".asked .text").all_inner_texts() == ["Three?"]
    assert [turn["question"] for turn in page.kept()[0]["turns"]] == ["Three?"]


def test_conversations_are_opened_and_deleted(serve, open_page):
    page = open_page(serve("a b"))
    for question in ["First", "Second"]:
        page.ask(question)
        page.answers(1)
        page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name="First", exact=True).click()
    assert page.locator(".asked .text").inner_text() == "First"
    page.get_by_role("button", name="Delete “First”").click()
    assert page.locator(".turn").count() == 0
    assert [each["title"] for each in page.kept()] == ["Second"]
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all").click()
    assert page.kept() == []


def test_the_enter_that_ends_a_chinese_word_does_not_send_and_shift_enter_makes_a_line(serve, open_page):
    client = serve("a b")
    page = open_page(client)
    field = page.get_by_label("Message", exact=True)
    field.fill("ni hao")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    field.press("Shift+Enter")
    field.press_sequentially("there")
    assert field.input_value() == "ni hao\nthere"
    assert client.engine.calls == []


def test_a_key_is_asked_for_and_asked_again_where_it_is_wrong_and_is_kept_for_the_tab_only(serve, open_page):
    page = open_page(serve("a b", keys=["sesame"]), models=False)
    for key in ["wrong", "sesame"]:
        page.get_by_label("API key", exact=True).fill(key)
        page.keyboard.press("Enter")
        page.locator("#key", has_text="does not know" if key == "wrong" else "").wait_for(
            state="visible" if key == "wrong" else "hidden"
        )
    page.ask("Hello")
    assert page.answers() == ["a b"]
    page.reload()
    page.locator("#model-0 option[value*=demo]").wait_for(state="attached")
    assert page.evaluate("() => JSON.stringify(localStorage).includes('sesame')") is False


def test_without_a_key_the_page_says_so(serve, open_page):
    page = open_page(serve("a b", keys=["sesame"]), models=False)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("alert").filter(has_text="wants an API key").wait_for()


def test_two_servers_are_compared_side_by_side(serve, open_page):
    tuned = serve("the sea")
    base = serve("the river", origins=[tuned.url])
    page = open_page(tuned)
    page.setting("second", f"{base.url}/v1")
    page.locator("#model-1 option").nth(1).wait_for(state="attached")
    page.get_by_role("button", name="Compare two models").click()
    page.ask("Where?")
    assert page.answers(2) == ["the sea", "the river"]
    page.reload()
    page.locator("#model-1 option").nth(1).wait_for(state="attached")
    page.ask("And then?")
    assert page.answers(2) == ["the sea", "the river"]
    assert len(base.engine.calls) == len(tuned.engine.calls) == 2


def test_a_second_server_that_does_not_allow_this_page_is_told(serve, open_page):
    base = serve("the river")
    page = open_page(serve("the sea"))
    page.setting("second", base.url)
    page.get_by_role("alert").filter(has_text=f"{base.url}/ cannot be reached").wait_for()
    page.ask("Where?")
    assert page.answers() == ["the sea"]
    assert all("CORS" in each or "ERR_FAILED" in each for each in page.complaints)
    page.complaints.clear()


def test_the_page_cannot_reach_a_server_that_its_address_does_not_name(serve, open_page):
    other = serve("a b")
    page = open_page(serve("a b"))
    asked = "url => fetch(url).then(() => 'reached', () => 'refused')"
    assert page.evaluate(asked, f"{other.url}/healthz") == "refused"
    assert any("Content Security Policy" in each for each in page.complaints)
    page.complaints.clear()


def test_an_error_of_the_server_is_shown_and_the_question_can_be_asked_again(serve, open_page):
    client = serve("a b")
    client.engine.fail_after = 0
    page = open_page(client)
    page.ask("Hello")
    page.answers()
    assert "The engine failed" in page.locator(".answer .wrong").inner_text()
    client.engine.fail_after = None
    page.get_by_role("button", name="Retry").click()
    page.locator(".answer .wrong").wait_for(state="detached")
    assert page.answers() == ["a b"]


def test_a_server_that_was_not_there_is_asked_for_its_models_again(serve, open_page):
    page = open_page(serve("a b"), models=False)
    page.route("**/v1/models", lambda route: route.abort(), times=2)
    page.reload()
    page.get_by_role("alert").filter(has_text="cannot be reached").wait_for()
    page.ask("Hello")
    page.get_by_role("alert").filter(has_text="cannot be reached").wait_for()
    assert page.get_by_label("Message", exact=True).input_value() == "Hello"
    page.unroute("**/v1/models")
    page.ask("Hello")
    assert page.answers() == ["a b"]
    assert {each.split(" net::")[0] for each in page.complaints} == {"Failed to load resource:"}
    page.complaints.clear()


def test_the_page_speaks_the_language_of_the_browser_and_another_when_told(serve, open_page):
    page = open_page(serve("a b"), locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.get_by_role("button", name="设置").click()
    page.get_by_label("语言").select_option("en")
    assert page.get_by_role("heading", name="Settings").is_visible()
    page.get_by_label("Theme").select_option("dark")
    page.keyboard.press("Escape")
    page.reload()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"


def test_both_languages_say_the_same_things(serve, open_page):
    page = open_page(serve("a b"))
    kinds = """async () => {
      const { TEXTS } = await import(new URL("page/texts.js", document.baseURI).href);
      return Object.values(TEXTS).map(each => Object.fromEntries(
        Object.entries(each).map(([name, text]) => [name, typeof text])));
    }"""
    english, chinese = page.evaluate(kinds)
    assert english == chinese


def test_nothing_is_wider_than_the_screen(serve, open_page):
    page = open_page(serve("```\n" + "wide " * 30 + "\n```"))
    page.ask("a" * 300)
    page.answers()
    too_wide = """() => [document.documentElement, ...document.querySelectorAll("#turns, header, footer, #history")]
        .filter(node => node.scrollWidth > Math.min(node.clientWidth, innerWidth)).map(node => node.outerHTML)"""
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 640})
        assert page.evaluate(too_wide) == [], width


def test_every_control_has_a_name_and_the_colours_have_contrast(serve, open_page):
    page = open_page(serve("a b"))
    page.ask("Hello")
    page.answers()
    nameless = """() => [...document.querySelectorAll("button, input, select, textarea")].filter(
        node => !(node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim())).length"""
    assert page.evaluate(nameless) == 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for text, ground in page.evaluate(COLOURS):
            assert contrast(text, ground) >= 4.5, (scheme, text, ground)


COLOURS = """() => {
  const colour = name => {
    const node = document.createElement("i");
    document.body.append(node);
    node.className = "probe";
    node.style.color = `var(--${name})`;
    const found = getComputedStyle(node).color;
    node.remove();
    return found.match(/\\d+/g).map(Number);
  };
  const pairs = [];
  for (const ground of ["ground", "raised"])
    for (const text of ["text", "muted", "accent", "wrong"]) pairs.push([colour(text), colour(ground)]);
  return [...pairs, [colour("on-accent"), colour("accent")]];
}"""


def contrast(one, other):
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_on_a_phone_the_conversations_are_behind_a_button(serve, open_page):
    page = open_page(serve("a b"), viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    assert not page.locator("#new").is_visible()
    page.get_by_role("button", name="Conversations").tap()
    assert page.locator("#new").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#new").is_visible()


# What needs no browser
