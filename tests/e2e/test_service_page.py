"""The page of the service in a real browser: how images reach it, and what it shows of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import TOKEN, Server, picture, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        options = [
            "--no-sandbox",  # in containers it needs privileges
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
        ]
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("page"), tiny_model, "--device", "cpu") as server:
        yield server


class Page:
    """An open page; what it fetched and what went wrong."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.fetched: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(url)

    def _hear(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.errors.append(message.text)

    def wait_until_ready(self) -> None:
        self.page.locator("#files:enabled").wait_for(state="attached")

    def choose(self, *files: dict[str, object], selector: str = "#files") -> list[Any]:
        self.wait_until_ready()
        self.page.set_input_files(selector, list(files))
        return self.cards(len(files))

    def cards(self, count: int) -> list[Any]:
        """Those with an answer, once there are so many."""
        cards = self.page.locator(".card:not(.waiting)")
        playwright.expect(cards).to_have_count(count, timeout=60_000)
        return list(cards.all())

    def wait_for(self, text: str) -> None:
        self.page.get_by_text(text, exact=True).wait_for()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    page = Page(browser, server.url)
    yield page
    page.context.close()
    assert page.errors == []
    assert all(url.startswith((server.url, "blob:")) for url in page.fetched)


def file(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def fulfill(answer: Mapping[str, object], route: Any) -> None:
    route.fulfill(json=answer)


# puts a picture into what a drop or a paste carries
CARRY = """async (kind) => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 80;
  const blob = await new Promise((done) => canvas.toBlob(done, 'image/png'));
  const carried = new DataTransfer();
  carried.items.add(new File([blob], kind + '.png', {type: 'image/png'}));
  const event = kind === 'drop'
    ? new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true})
    : new ClipboardEvent('paste', {clipboardData: carried, bubbles: true});
  document.body.dispatchEvent(event);
}"""

FOCUSED = """() => {
  const node = document.activeElement;
  return node.id || node.className || node.tagName;
}"""


def test_chosen_images_get_label_bars_and_routing(page: Page) -> None:
    cards = page.choose(file("a.png", picture()), file("b.png", b"text"))
    shown, failed = sorted(cards, key=lambda card: str(card.locator(".name").inner_text()))
    assert shown.locator(".label").inner_text() in ("blue disc", "red square", "stripes")
    shares = [float(share.split()[0]) for share in shown.locator(".share").all_inner_texts()]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)
    assert shown.locator(".routed").inner_text().startswith("routed to ")
    assert shown.locator("img").get_attribute("alt").startswith("Classified as ")
    assert "found not an image of a known format" in failed.locator(".label").inner_text()
    assert failed.locator("img").count() == 0
    status = page.page.locator("#status").inner_text()
    assert status.startswith("2 images, 1 failed, ")
    assert status.endswith(" images/s")
    assert page.page.locator("#counts").inner_text() == "3 classes, 2 domains"
    assert page.page.locator("#classes").inner_text() == ""  # folded
    page.page.locator("#counts").click()
    assert page.page.locator("#domains").inner_text() == "photo, sketch"


def test_four_images_are_asked_for_at_once_and_the_others_wait(page: Page) -> None:
    page.page.route("**/v1/classify", lambda route: None)  # no answer
    page.wait_until_ready()
    page.page.set_input_files("#files", [file(f"{i}.png", picture()) for i in range(6)])
    page.wait_for("0 images, 6 waiting")
    playwright.expect(page.page.locator(".card.waiting")).to_have_count(4)


def test_the_page_keeps_the_newest_200_cards(page: Page) -> None:
    answer = {"predictions": [{"error": "as asked"}]}
    page.page.route("**/v1/classify", partial(fulfill, answer))
    page.wait_until_ready()
    page.page.set_input_files("#files", [file(f"{i}.png", b"x") for i in range(203)])
    page.page.get_by_text("203 images, 203 failed").wait_for()
    cards = page.cards(200)
    assert cards[-1].locator(".name").inner_text() == "3.png"


def test_an_image_unlike_the_known_domains_is_flagged(page: Page) -> None:
    prediction = {
        "label": "mug",
        "score": 1.0,
        "top_k": [["mug", 1.0]],
        "routed_to": "photo",
        "domain_weights": {"photo": 1.0},
        "unknown_score": 4.25,
        "error": None,
    }
    for unknown in (True, False):
        answer = {"predictions": [prediction | {"unknown": unknown}]}
        page.page.route("**/v1/classify", partial(fulfill, answer))
        (card,) = page.choose(file("a.png", picture()))
        assert card.locator(".unknown").is_visible() == unknown
        assert card.locator(".routed").is_hidden()  # one domain alone
        if unknown:
            told = "Unlike the known domains (4.3)"
            assert card.locator(".unknown").inner_text() == told
        page.page.locator("#clear").click()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_and_pasted_images(page: Page, kind: str) -> None:
    page.wait_until_ready()
    page.page.evaluate(CARRY, kind)
    (shown,) = page.cards(1)
    assert shown.locator(".name").inner_text() == f"{kind}.png"
    assert shown.locator(".bars li").count() == 3


def test_a_file_of_another_type_is_no_image(page: Page) -> None:
    page.wait_until_ready()
    text = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}
    page.page.set_input_files("#files", [text])
    page.wait_for("No image found.")
    page.cards(0)


def test_names_of_files_are_no_markup(page: Page) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    cards = page.choose(file(name, picture()), file("<b>.png", b"text"))
    failed, shown = sorted(cards, key=lambda card: str(card.locator(".name").inner_text()))
    assert shown.locator(".name").inner_text() == name
    assert "<b>.png" in failed.locator(".label").inner_text()
    assert page.page.locator(".name img, .label b").count() == 0


def test_the_camera(page: Page) -> None:
    page.wait_until_ready()
    page.page.locator("#camera").click()
    page.page.locator("#shoot").click()
    page.cards(1)
    page.page.locator("#close").click()
    assert page.page.locator("#live").is_hidden()
    assert page.page.locator("#video").evaluate("video => video.srcObject") is None
    assert page.page.locator("#camera").evaluate("node => node === document.activeElement")


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.choose(file("a.png", picture()))
    page.page.locator("body").focus()
    reached = []
    for _ in range(6):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate(FOCUSED))
    assert [name for name in reached if name != "BODY"][:5] == [
        *("counts", "files", "camera", "clear", "A")
    ]
    page.page.locator("#clear").focus()
    page.page.keyboard.press("Enter")
    page.cards(0)
    assert page.page.locator("#status").inner_text() == ""
    assert page.page.locator("#files").evaluate("node => node === document.activeElement")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Any, server: Server, scheme: str) -> None:
    phone = Page(
        browser,
        server.url,
        viewport={"width": 400, "height": 800},
        color_scheme=scheme,
        has_touch=True,
        is_mobile=True,
    )
    phone.choose(file("a" * 200 + ".png", picture()), selector="#photo")
    root = phone.page.locator("html")
    assert root.evaluate("node => node.scrollWidth") <= 400
    assert phone.page.locator("#photo").get_attribute("capture") == "environment"
    assert phone.page.locator("#take").is_visible()
    assert phone.page.locator("#camera").is_hidden()
    dark = root.evaluate("node => getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(246, 247, 249)", "dark": "rgb(22, 24, 28)"}[scheme]
    assert phone.errors == []
    phone.context.close()


def test_a_server_with_tokens_asks_for_one(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with running(tmp_path, tiny_model, "--token-file", tmp_path / "tokens") as server:
        page = Page(browser, server.url)
        page.wait_for("This server requires a token.")
        page.page.locator("#token").fill("a wrong token")
        page.page.keyboard.press("Enter")
        page.wait_for("This token is not valid.")
        page.page.locator("#token").fill(TOKEN)
        page.page.keyboard.press("Enter")
        page.choose(file("a.png", picture()))
        assert page.page.locator("#access").is_hidden()
        assert page.page.locator("footer a").count() == 0  # a link carries no token
        assert page.errors == []
        page.context.close()


def test_the_model_is_chosen(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    models = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for model in models:
        shutil.copyfile(tiny_model, model)
    with running(tmp_path, *models, "--device", "cpu") as server:
        page = Page(browser, server.url)
        page.page.locator("#model").select_option("second")
        assert page.page.locator("#note").inner_text().startswith("Model second, version ")
        page.choose(file("a.png", picture()))
        page.context.close()
        asked = [line["model"] for line in server.lines() if line["path"] == "/v1/classify"]
    assert asked == ["second"]


def test_a_server_that_is_gone_is_told(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    with running(tmp_path, tiny_model, "--device", "cpu") as server:
        page = Page(browser, server.url)
        page.wait_until_ready()
        assert server.stop() == 0
        page.choose(file("a.png", picture()))
        page.wait_for("The server does not answer, or the file cannot be read.")
        page.context.close()


def test_the_page_of_the_routes(page: Page, server: Server) -> None:
    page.page.get_by_text("API of this server").click()
    page.page.get_by_text("POST /v1/classify").wait_for()
    section = page.page.locator("section").first
    assert section.evaluate("node => getComputedStyle(node).borderStyle") == "solid"
