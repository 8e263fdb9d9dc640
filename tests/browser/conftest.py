"""A headless Chromium for the tests that need one: `page`, `shoot` for screenshots, `assert_accessible`.

A page that logs an error, breaks the content security policy or calls another host fails its test. Screenshots go
to the folder PLUMBLINE_SHOTS names, else to the test's own temporary folder.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect, sync_playwright
from pytest_django.live_server_helper import LiveServer

from annotate.models import Annotator
from config.home import BASE_DIR
from tests import factories

expect.set_options(timeout=15_000)

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NUM_PICTURES = 5
LAPTOP = {"width": 1366, "height": 768}
Shoot = Callable[[str], Path]
AXE = BASE_DIR / "node_modules" / "axe-core" / "axe.min.js"
WCAG_22_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RUN_AXE = """async (tags) => {
  const { violations } = await axe.run(document, { runOnly: tags, resultTypes: ["violations"], preload: false });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id} at ${target.join(" ")}: ${failureSummary}`));
}"""


def chromium_path() -> str:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not path or not Path(path).exists():
        pytest.fail(
            "These tests need Chromium, and there is none on PATH. Install it (Debian: apt-get install chromium), "
            "or name one in the environment variable CHROMIUM.",
            pytrace=False,
        )
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = (
        "true"  # Playwright's event loop runs in this thread; our code is not in it
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


class Watch:
    """What a page complains of while a test drives it. A test that provokes a complaint takes it out of the list."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.under_way: set[Request] = set()
        for event in ("requestfinished", "requestfailed"):
            page.on(event, lambda request: self.under_way.discard(request))  # noqa: PLW0108 -- Playwright takes no built-in
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def wait_for_answers(self, page: Page, seconds: float = 2) -> None:
        deadline = time.monotonic() + seconds
        while self.under_way and not page.is_closed() and time.monotonic() < deadline:
            page.wait_for_timeout(20)

    def _on_request(self, request: Request) -> None:
        self.under_way.add(request)
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname not in ("127.0.0.1", "localhost"):
            self.complaints.append(f"request to {request.url}")


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page in a fresh profile, which must not have complained of anything in the end.

    A page that is closed sends its last draft. It is cut off from the network before, and what is under way gets
    its answer: else the server would write while the database is emptied for the next test.
    """
    context = browser.new_context(locale="en-GB", **options)
    context.set_default_timeout(30_000)
    page = context.new_page()
    watch = Watch(page)
    page.complaints = watch.complaints
    yield page
    complaints = list(watch.complaints)
    watch.wait_for_answers(page)
    context.set_offline(True)
    context.close()
    assert complaints == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A laptop's screen and mouse."""
    with opened(browser, viewport=LAPTOP) as page:
        yield page


@pytest.fixture
def annotator() -> Annotator:
    return factories.make_annotator(user=factories.make_user(username="amina"))


@pytest.fixture
def start(page: Page, live_server: LiveServer, annotator: Annotator) -> Callable[..., None]:
    """Sign in as `annotator` and start judging, in the only project or in the one of that name."""

    def start(project: str = "") -> None:
        sign_in(page, live_server.url)
        page.get_by_role("button", name=f"Start {project}").click()
        page.locator("#comparison[data-ready]").wait_for()

    return start


def sign_in(page: Page, address: str, username: str = "amina") -> None:
    page.goto(address)
    page.get_by_label("Name").fill(username)
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Sign in").click()


@pytest.fixture
def shoot(page: Page, tmp_path: Path) -> Shoot:
    """`shoot("name")` keeps what the page shows as name.png."""
    folder = Path(os.environ.get("PLUMBLINE_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(name: str) -> Path:
        return picture(page, folder / f"{name}.png")

    return shoot


def picture(page: Page, path: Path, *, full_page: bool = False) -> Path:
    """What the page shows, as a file. A busy Chromium now and then cannot draw at once; it is asked again."""
    for attempt in range(NUM_PICTURES):
        try:
            page.screenshot(path=path, full_page=full_page, caret="initial")  # hiding it would need an inline style
            break
        except Error as error:
            if "Unable to capture screenshot" not in str(error) or attempt == NUM_PICTURES - 1:
                raise
    return path


def assert_accessible(page: Page) -> None:
    """axe finds nothing against WCAG 2.2 AA in the page as it stands; each finding names its rule and element.

    Colours are looked at in the colour scheme of the moment (`page.emulate_media(color_scheme="dark")`), and while
    something fades in axe takes its colour of the moment for its own: wait for what the test is about.
    """
    page.evaluate(AXE.read_text(encoding="utf-8"))  # by the debugger: the content security policy lets no script in
    assert page.evaluate(RUN_AXE, WCAG_22_AA) == []
