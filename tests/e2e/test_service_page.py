"""The page of the service in a real browser: choose, drop and paste; keyboard; token; no markup."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
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

    def results(self) -> list[Any]:
        return self.page.locator(".result").all()

    def wait_for(self, text: str) -> None:
        self.page.get_by_text(text, exact=True).wait_for()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    page = Page(browser, server.url)
    yield page
    page.context.close()
    assert page.errors == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in page.fetched)


def file(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


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
    page.wait_for("model: 3 classes, 2 domains (photo, sketch)")
    page.page.set_input_files("#files", [file("a.png", picture()), file("b.png", b"text")])
    page.wait_for("2 of 2 done")
    failed, shown = page.results()
    assert shown.locator(".name").inner_text() == "a.png"
    assert shown.locator(".label").inner_text() in ("blue disc", "red square", "stripes")
    bars = shown.locator("progress")
    assert bars.count() == 3
    shares = [float(bars.nth(i).get_attribute("value")) for i in range(3)]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert shares == sorted(shares, reverse=True)
    assert shown.locator(".routed").inner_text().startswith("Routed to ")
    assert shown.locator("img").get_attribute("alt").startswith("Classified as ")
    assert "found not an image of a known format" in failed.locator(".label").inner_text()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_and_pasted_images(page: Page, kind: str) -> None:
    page.page.evaluate(CARRY, kind)
    page.wait_for("1 of 1 done")
    (shown,) = page.results()
    assert shown.locator(".name").inner_text() == f"{kind}.png"
    assert shown.locator(".scores li").count() == 3


def test_names_of_files_are_no_markup(page: Page) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    page.page.set_input_files("#files", [file(name, picture()), file("<b>.png", b"text")])
    page.wait_for("2 of 2 done")
    failed, shown = page.results()
    assert shown.locator(".name").inner_text() == name
    assert "<b>.png" in failed.locator(".label").inner_text()
    assert page.page.locator(".name img, .label b").count() == 0


def test_the_camera(page: Page) -> None:
    page.page.locator("#camera").click()
    page.page.locator("#shoot").click()
    page.wait_for("1 of 1 done")
    page.page.locator("#close").click()
    assert page.page.locator("#live").is_hidden()
    assert page.page.locator("#video").evaluate("video => video.srcObject") is None


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.wait_for("model: 3 classes, 2 domains (photo, sketch)")
    page.page.set_input_files("#files", [file("a.png", picture())])
    page.wait_for("1 of 1 done")
    page.page.locator("body").focus()
    reached = []
    for _ in range(6):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate(FOCUSED))
    assert [name for name in reached if name != "BODY"][:5] == [
        *("files", "camera", "clear", "result", "A")
    ]
    page.page.locator("#clear").focus()
    page.page.keyboard.press("Enter")
    assert page.results() == []
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
    phone.page.set_input_files("#photo", [file("a" * 200 + ".png", picture())])
    phone.wait_for("1 of 1 done")
    root = phone.page.locator("html")
    assert root.evaluate("node => node.scrollWidth") <= 400
    assert phone.page.locator("#photo").get_attribute("capture") == "environment"
    dark = root.evaluate("node => getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 28)"}[scheme]
    assert phone.errors == []
    phone.context.close()


def test_a_server_with_tokens_asks_for_one(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with running(tmp_path, tiny_model, "--token-file", tmp_path / "tokens") as server:
        page = Page(browser, server.url)
        page.page.locator("#token").fill("a wrong token")
        page.page.keyboard.press("Enter")
        page.wait_for("The server does not know this token.")
        page.page.locator("#token").fill(TOKEN)
        page.page.keyboard.press("Enter")
        page.wait_for("model: 3 classes, 2 domains (photo, sketch)")
        assert page.page.locator("#access").is_hidden()
        page.page.set_input_files("#files", [file("a.png", picture())])
        page.wait_for("1 of 1 done")
        assert page.errors == []
        page.context.close()


def test_a_server_that_is_gone_is_told(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    with running(tmp_path, tiny_model, "--device", "cpu") as server:
        page = Page(browser, server.url)
        page.wait_for("model: 3 classes, 2 domains (photo, sketch)")
        assert server.stop() == 0
        page.page.set_input_files("#files", [file("a.png", picture())])
        page.wait_for("The server does not answer.")
        page.context.close()
