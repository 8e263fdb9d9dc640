"""Held-out accuracy of reward models on real judgments, beside TRL's on the same backbone, and what brackets them.

    longer           the longer response wins
    words            Bradley-Terry on bags of words: the floor
    tiny, llama      Llamas of 1 and 11 million parameters beside their vocabulary, which start from nothing
    minilm           the MiniLM encoder
    *_trl            TRL's RewardTrainer on it, from the same weights, with the same epochs, steps and learning rates
    people           one annotator against the majority of the others, where several judged: the ceiling

No prompt of a test file is in a train file. Prompts that are too long lose their beginning, for TRL too, which would
otherwise leave such pairs out. There is no validation set and no early stopping on either side: the last weights are
measured. Of ukpconvarg's 18,954 judgments those of NUM_UKPCONVARG pairs, drawn at random from all debates, are trained
on, each with all its votes; all the test pairs are measured. PLUMBLINE_BENCH_ITEMS trains on fewer items of any source.

Each model's test scores are kept in PLUMBLINE_HOME under its settings, so a run that was stopped goes on, and parts can
be run by themselves: PLUMBLINE_BENCH_DATA and PLUMBLINE_BENCH_MODELS name some, PLUMBLINE_BENCH_SEEDS how many seeds
(1). Without PLUMBLINE_BENCH_MODELS only what is kept already and what takes seconds is shown: a pass of a model over
hh_helpful takes many minutes on two cores.
"""

import hashlib
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.preference_data import LLAMA, TINY, build_llama, minilm, minilm_tokenizer, read_rows, write_preferences
from bench.processes import apart, prepare
from bench.run import Row, Skipped
from bench.trl_peer import Settings, Task, encode_pairs, train
from config.home import HOME

if TYPE_CHECKING:
    from training.alignment.preferences import RankedResponses

SOURCES = ("hh_harmless", "hh_helpful", "mtbench_human", "ukpconvarg", "alpaca_eval", "finegrained_qa")
RULES = ("longer", "words")
BACKBONES = ("tiny", "llama", "minilm")
SETTINGS = {"tiny": (1e-3, 1024), "llama": (3e-4, 512), "minilm": (3e-5, 512)}
"""Peak learning rate, and the most tokens of a prompt with a response."""
MODELS = tuple(backbone + side for backbone in BACKBONES for side in ("", "_trl"))
NUM_UKPCONVARG = 1500
TRL = Settings(batch_size=8)

Scores = list[list[float]]


@dataclass(frozen=True)
class Cell:
    """One model trained on one source from one seed, and all that its scores depend on."""

    source: str
    model: str
    seed: int = 0
    learning_rate: float = 0.0
    num_epochs: int = 1
    batch_size: int = 16
    max_length: int = 512
    num_items: int = 0

    @property
    def path(self) -> Path:
        told = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return HOME / "bench" / "reward_model_accuracy" / self.source / f"{self.model}-{self.seed}-{told}.json"

    @property
    def backbone(self) -> str:
        return self.model.removesuffix("_trl")

    def read(self) -> Scores | None:
        """The scores of the test rankings' responses, if they are known."""
        return json.loads(self.path.read_text())["scores"] if self.path.exists() else None


def run() -> Iterator[Row]:
    wanted, chosen = (_names(f"PLUMBLINE_BENCH_{name}") for name in ("DATA", "MODELS"))
    if unknown := {*wanted} - {*SOURCES} | {*chosen} - {*MODELS}:
        raise Skipped(f"{', '.join(sorted(unknown))}: there are {', '.join(SOURCES)} and {', '.join(MODELS)}")
    for source in wanted or SOURCES:
        with tempfile.TemporaryDirectory() as scratch:
            rows = training_rows(source)
            train_set = write_preferences(rows, Path(scratch) / "train.jsonl")
            test_set = write_preferences(read_rows(source, "test"), Path(scratch) / "test.jsonl")
        for cell in (cell_of(source, model, seed) for model in chosen for seed in range(num_seeds())):
            if cell.read() is None:
                _keep(cell, *apart(_train_and_score, cell))
        yield from _table(source, train_set, test_set)


def cell_of(source: str, model: str, seed: int) -> Cell:
    """How each model is trained: a pass or two over few judgments is all that does not learn them by heart."""
    learning_rate, max_length = next(told for name, told in SETTINGS.items() if model.startswith(name))
    return Cell(source, model, seed, learning_rate, num_epochs=2, max_length=max_length, num_items=most_items(source))


def num_seeds() -> int:
    return int(os.environ.get("PLUMBLINE_BENCH_SEEDS") or 1)


def most_items(source: str) -> int:
    """How many items at most are trained on; 0 for all."""
    return int(os.environ.get("PLUMBLINE_BENCH_ITEMS") or (NUM_UKPCONVARG if source == "ukpconvarg" else 0))


def training_rows(source: str) -> list[dict[str, Any]]:
    rows = read_rows(source, "train")
    items = sorted({row["meta"]["item"] for row in rows})
    most = most_items(source)
    if not most or most >= len(items):
        return rows
    kept = {*random.Random(0).sample(items, most)}
    return [row for row in rows if row["meta"]["item"] in kept]


def _names(variable: str) -> list[str]:
    return [name for name in os.environ.get(variable, "").split(",") if name]


def _keep(cell: Cell, scores: Scores, seconds: float) -> None:
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    scratch = cell.path.with_suffix(".partial")
    scratch.write_text(json.dumps({**asdict(cell), "seconds": seconds, "scores": scores}))
    scratch.replace(cell.path)


def _train_and_score(cell: Cell) -> tuple[Scores, float]:
    """To be called in a process of its own: the test rankings' scores, and the seconds that training took."""
    import torch

    from training.alignment.reward_model import RewardModel
    from training.alignment.reward_net import load_backbone

    prepare()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if cell.backbone == "minilm":
            backbone = minilm()
        else:
            size = TINY if cell.backbone == "tiny" else LLAMA
            backbone = build_llama(minilm_tokenizer(), folder / "llama", cell.seed, size)
        torch.manual_seed(cell.seed)
        model, tokenizer = load_backbone(str(backbone))  # both sides start from the same head
        model.save_pretrained(folder / "start")
        tokenizer.save_pretrained(folder / "start")
        test_rows = read_rows(cell.source, "test")
        if cell.model.endswith("_trl"):
            trained = _train_with_trl(cell, folder)
        else:
            trained = _train_here(cell, folder, test_rows[:1])
        seconds = time.perf_counter() - start
        test_set = write_preferences(test_rows, folder / "test.jsonl")
        texts = [(ranked.prompt, text) for ranked in test_set for text in ranked.responses]
        found = iter(RewardModel.load(trained, max_length=cell.max_length).score(texts))
    return [[next(found) for _ in ranked.responses] for ranked in test_set], seconds


def _train_here(cell: Cell, folder: Path, test_rows: Sequence[dict[str, Any]]) -> Path:
    from training.alignment.config import RewardModelConfig
    from training.alignment.reward_training import train_reward_model
    from training.alignment.run_dir import RunDir

    config = RewardModelConfig(
        backbone=str(folder / "start"),
        seed=cell.seed,
        num_epochs=cell.num_epochs,
        batch_size=cell.batch_size,
        learning_rate=cell.learning_rate,
        max_length=cell.max_length,
        save_minutes=600,
    )
    run_dir = RunDir.create(folder / "run", config)
    write_preferences([*training_rows(cell.source), *test_rows], run_dir.path / config.preferences)
    train_reward_model(config, run_dir, lambda: False)
    return run_dir.model


def _train_with_trl(cell: Cell, folder: Path) -> Path:
    from transformers import AutoTokenizer

    from training.alignment.products import allow_fast_products

    allow_fast_products()  # nobody's speed is measured here
    tokenizer = AutoTokenizer.from_pretrained(folder / "start")
    rankings = write_preferences(training_rows(cell.source), folder / "train.jsonl")
    decided = [ranked for ranked in rankings if ranked.is_decided]
    task = Task(
        backbone=folder / "start",
        pairs=encode_pairs(decided, tokenizer, cell.max_length),
        num_steps=math.ceil(_num_items(decided) / cell.batch_size),
        learning_rate=cell.learning_rate,
        num_epochs=cell.num_epochs,
        seed=cell.seed,
    )
    train(task, TRL, folder / "trained")
    return folder / "trained"


def _num_items(rankings: "Sequence[RankedResponses]") -> int:
    """Prompts with their responses, however many judged them: what a step of ours counts."""
    return len({json.dumps([list(ranked.prompt), sorted({*ranked.responses})]) for ranked in rankings})


def _table(source: str, train_set: "list[RankedResponses]", test_set: "list[RankedResponses]") -> Iterator[Row]:
    from training.alignment.baselines import WordReward, longer_wins
    from training.alignment.evaluation import report

    rule_scores = {"longer": longer_wins(test_set), "words": WordReward.fit(train_set).score(test_set)}
    reports = {rule: report(test_set, scores) for rule, scores in rule_scores.items()}
    floor = reports["words"]["figures"]["accuracy"]["value"]
    for name, found in reports.items():
        print(f"    {source}, {name}: {_shown(found['figures']['accuracy'])}")
    if ceiling := reports["words"]["ceiling"]:
        print(
            f"    {source}, people: {_shown(ceiling['leave_one_out'])} "
            f"on {ceiling['num_items']} items that several judged"
        )
    means: dict[str, float] = {}
    for model in MODELS:
        known = [scores for seed in range(num_seeds()) if (scores := cell_of(source, model, seed).read())]
        figures = [report(test_set, scores)["figures"]["accuracy"] for scores in known]
        if figures:
            means[model] = statistics.fmean(figure["value"] for figure in figures)
            shown = ", ".join(_shown(figure) for figure in figures)
            print(f"    {source}, {model}: {100 * means[model]:.1f} % over {len(figures)} seeds: {shown}")
    for backbone in (name for name in BACKBONES if name in means):
        ours = means[backbone]
        yield Row(f"accuracy, {source}, {backbone} against words", 100 * ours, 100 * floor, "%", ours / floor, 1.0)
        if f"{backbone}_trl" in means:
            yield _beside_trl(source, backbone, test_set, means)


def _beside_trl(source: str, backbone: str, test_set: "list[RankedResponses]", means: dict[str, float]) -> Row:
    """Paired on the same pairs, seed by seed; not lower beyond noise is what is asked for."""
    from training.alignment.evaluation import OtherModel, report

    gains = []
    for seed in range(num_seeds()):
        ours, peer = (cell_of(source, backbone + side, seed).read() for side in ("", "_trl"))
        if ours and peer:
            gains.append(report(test_set, ours, other=OtherModel("TRL", peer))["comparison"]["accuracy_gain"])
    ours, peer = means[backbone], means[f"{backbone}_trl"]
    title = f"accuracy, {source}, {backbone} against TRL"
    if not gains:
        return Row(title, 100 * ours, 100 * peer, "%", ours / peer, 1.0, note="from different seeds")
    low, high = (statistics.fmean(gain["interval"][end] for gain in gains) for end in (0, 1))
    noise = high - statistics.fmean(gain["value"] for gain in gains)
    note = f"gain in points, mean of the seeds' intervals [{100 * low:+.1f}, {100 * high:+.1f}]"
    return Row(title, 100 * ours, 100 * peer, "%", ours / peer, 1 - noise / peer, note=note)


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "not known"
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
