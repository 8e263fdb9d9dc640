"""The whole path, as a newcomer walks it: real server, real Redis, real workers, a real browser.

Import, judge, freeze, train, sample and select, export. The models are small and the runs short: that the loop
closes is shown here; how good its outcome is, the demonstration shows.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import datasets  # noqa: TID253 -- what reads the export is what users read it with
import pytest
from playwright.sync_api import Page, expect

from annotate.demonstration.recipes import demonstration_rows, sft_examples
from tests.annotate.openai_server import openai_server
from tests.browser.conftest import Shoot, assert_accessible
from tests.installation import Installation, running

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RUN_SECONDS = 300
NUM_SIMULATED = 150


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A running installation with an imported project and a small language model."""
    with running(tmp_path_factory.mktemp("kitchen")) as installation:
        questions = write_rows(installation.home / "questions.jsonl", demonstration_rows(seed=1))
        installation.run("import_data", "kitchen", str(questions), "--overlap", "2")
        examples = write_rows(installation.home / "examples.jsonl", sft_examples(seed=0, n=300))
        told = installation.run(
            "launch", "sft", "base", "policy=new:tiny", f"examples={examples}", "learning_rate=3e-3", "--wait"
        )
        assert json.loads(told.splitlines()[-1])["status"] == "succeeded"
        yield installation


def sign_in(page: Page, kitchen: Installation, name: str) -> None:
    page.goto(kitchen.base_url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(kitchen.accounts[name])
    page.get_by_role("button", name="Sign in").click()


def judge(page: Page, kind: str, way) -> None:
    """Judge the next comparison of `kind`, skipping others, and see another one come without a full page load."""
    page.evaluate("window.isSamePage = true")
    while not page.locator(f"#comparison.{kind}[data-ready]").count():
        expect(page.locator("#comparison[data-ready]")).to_be_visible()
        if not page.locator(f"#comparison.{kind}").count():
            leave(page, lambda: skip(page))
    leave(page, way)
    assert page.evaluate("window.isSamePage")


def skip(page: Page) -> None:
    page.keyboard.press("s")
    page.get_by_role("button", name="No reason").click()


def leave(page: Page, way) -> None:
    """Do what ends a comparison, and wait for the next one."""
    address = page.url
    way()
    expect(page).not_to_have_url(address)
    expect(page.locator("#comparison[data-ready]")).to_be_visible()


def rank_by_keyboard(page: Page) -> None:
    page.keyboard.press("j")
    for place in range(1, page.locator("[data-card]").count() + 1):
        page.keyboard.press(str(place))
        page.keyboard.press("j")
    page.keyboard.press("Enter")


def rank_by_choosing(page: Page) -> None:
    for place, card in enumerate(page.locator("[data-card] select").all(), start=1):
        card.select_option(str(place))
    page.locator("[data-submit]").click()


def watch_run(page: Page) -> None:
    """The run's page comes up by itself and tells of the end by itself."""
    status = page.locator("#run-progress .pill")
    expect(status).to_have_text(re.compile("queued|running|succeeded", re.IGNORECASE))
    expect(status).to_have_text("Succeeded", ignore_case=True, timeout=RUN_SECONDS * 1000)


def start_run(page: Page, kitchen: Installation, kind: str, button: str, **values: str) -> None:
    page.goto(f"{kitchen.base_url}/admin/training/trainingrun/")
    page.locator(".object-tools").get_by_role("link", name=button).click()
    page.get_by_text("More settings").click()
    for name, value in values.items():
        page.locator(f"[name={name}]").fill(value)
    page.get_by_role("button", name=button).click()
    watch_run(page)


def test_whole_path(page: Page, kitchen: Installation, shoot: Shoot, tmp_path: Path):
    sign_in(page, kitchen, "annotator")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#comparison[data-ready]")).to_be_visible()
    judge(page, "pairwise", lambda: page.get_by_role("button", name="A slightly better").click())
    judge(page, "pairwise", lambda: page.keyboard.press("5"))
    judge(page, "listwise", lambda: rank_by_keyboard(page))
    shoot("judging")
    judge(page, "listwise", lambda: rank_by_choosing(page))
    page.get_by_role("button", name="Log out").click()
    kitchen.run("simulate_annotators", "kitchen", "--judgments", str(NUM_SIMULATED), "--noise", "0.1")

    sign_in(page, kitchen, "staff")
    page.goto(f"{kitchen.base_url}/admin/training/preferenceset/add/")
    page.get_by_label("Project").select_option(label="kitchen")
    shares = {"train": "0.5", "validation": "0.1", "test": "0.15", "guard": "0.25"}
    for field, value in {"name": "first", **shares}.items():
        page.locator(f"[name={field}]").fill(value)
    page.get_by_role("button", name="Freeze").click()
    expect(page.get_by_text("is frozen")).to_be_visible()

    start_run(page, kitchen, "reward_model", "Train reward model", name="rm", num_epochs="1", learning_rate="5e-4")
    expect(page.get_by_text(re.compile("accuracy", re.IGNORECASE)).first).to_be_visible()
    expect(page.locator("#run-curves canvas").first).to_be_visible()
    shoot("reward-model")
    start_run(
        page,
        kitchen,
        "rejection_sampling",
        "Rejection sampling",
        name="aligned",
        num_samples="4",
        num_prompts="12",
        num_held_out_prompts="8",
        num_guards="2",
        num_checked="2",
        max_new_tokens="64",
    )
    shoot("rejection-sampling")

    page.goto(f"{kitchen.base_url}/admin/annotate/project/")
    page.get_by_role("link", name="kitchen").first.click()
    for name in ("rankings", "trl-pairwise"):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Export {name}").click()
        download.value.save_as(tmp_path / f"{name}.jsonl")

    rankings = read(tmp_path / "rankings.jsonl", tmp_path)
    assert len(rankings) == NUM_SIMULATED + 4
    assert sorted(row["source"] for row in rankings).count("browser") == 4
    pairs = read(tmp_path / "trl-pairwise.jsonl", tmp_path)
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names)
    assert len(pairs) > NUM_SIMULATED


def read(path: Path, scratch: Path) -> datasets.Dataset:
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(scratch / "cache"))


# A policy on the live page: served by `transformers serve`, against a server that speaks OpenAI's protocol

SERVER_SECONDS = 120_000  # milliseconds, until `transformers serve` has loaded torch on a busy machine
MAKE = """
from annotate.models import Endpoint, Project
project = Project.objects.create(name="live")
Endpoint.objects.create(project=project, name="ours", kind="policy", model={folder!r}, max_tokens=24)
Endpoint.objects.create(project=project, name="theirs", model="kind", base_url={url!r})
print(project.pk)
"""
STORED = """
import json
from annotate.models import Judgment
(judgment,) = Judgment.objects.filter(project__name="live")
models = dict(judgment.comparison.responses.values_list("pk", "model"))
print(json.dumps([judgment.comparison.prompt.messages, [[models[pk] for pk in group] for group in judgment.ranking]]))
"""


def test_an_annotator_lets_a_policy_answer_and_judges(page: Page, kitchen: Installation, shoot: Shoot) -> None:
    policy = kitchen.home / "runs" / "1" / "model"
    with openai_server() as (url, _requests):
        project = kitchen.run("shell", "-v0", "-c", MAKE.format(folder=str(policy), url=url)).strip()
        page.goto(f"{kitchen.base_url}/login/?next=/projects/{project}/live/")
        page.get_by_label("Name").fill("annotator")
        page.get_by_label("Password").fill(kitchen.accounts["annotator"])
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("Your prompt").fill("How long do I boil an egg?")
        assert_accessible(page)
        shoot("live-prompt")
        page.get_by_role("button", name="Ask the models").click()
        expect(page.get_by_text("Take your time: seven minutes.")).to_be_visible()
        assert_accessible(page)
        shoot("live-answers")
        expect(page.locator("#comparison[data-ready]")).to_be_visible(timeout=SERVER_SECONDS)
        shoot("live-comparison")
        is_left = page.locator("article.response").first.get_by_text("Take your time").count() == 1
        page.keyboard.press("1" if is_left else "5")
        expect(page.get_by_role("heading", name="All done for now")).to_be_visible()

    messages, models = json.loads(kitchen.run("shell", "-v0", "-c", STORED))
    assert messages == [{"role": "user", "content": "How long do I boil an egg?"}]
    assert models == [["theirs"], ["ours"]]
