"""Training a reward model on the same rankings: one pass here against one pass of TRL's RewardTrainer.

TRL knows pairs only, so a list of four becomes six pairs and every response is read three times. Both start from
the same weights and take the same number of optimizer steps over the same rankings; loading is not counted.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotate.demonstration.quality import quality
from annotate.demonstration.recipes import demonstration_rows, sft_examples
from bench.run import Row

NUM_RANKINGS = 96
BATCH_SIZE = 16
NUM_RESPONSES = 4


def rankings() -> list[dict[str, Any]]:
    """Lists of four from the demonstration, ranked by their known quality."""
    lists = [row for row in demonstration_rows() if len(row["responses"]) == NUM_RESPONSES][:NUM_RANKINGS]
    for number, row in enumerate(lists):
        scores = [quality(row["prompt"], response["content"]) for response in row["responses"]]
        order = sorted(range(NUM_RESPONSES), key=lambda index: -scores[index])
        row.update(ranking=[[index] for index in order], split="train", aspect="overall", annotator=None)
        row["id"] = f"{number:016x}"
    return lists


def train_here(rows: list[dict[str, Any]], backbone: Path, folder: Path) -> float:
    from training.alignment.config import RewardModelConfig
    from training.alignment.reward_model import train_reward_model
    from training.alignment.run_dir import RunDir

    config = RewardModelConfig(
        backbone=str(backbone), num_epochs=1, batch_size=BATCH_SIZE, learning_rate=5e-4, save_minutes=60
    )
    run_dir = RunDir.create(folder, config)
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_reward_model(config, run_dir, lambda: False)
    times = [line["time"] for line in run_dir.read_metrics() if line["phase"] == "train"]
    return (times[-1] - times[0]) / (len(times) - 1) * len(times)


def train_with_trl(rows: list[dict[str, Any]], backbone: Path, folder: Path) -> float:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": row["responses"][better[0]]["content"]}],
            "rejected": [{"role": "assistant", "content": row["responses"][worse[0]]["content"]}],
        }
        for row in rows
        for place, better in enumerate(row["ranking"])
        for worse in row["ranking"][place + 1 :]
    ]
    num_pairs = NUM_RESPONSES * (NUM_RESPONSES - 1) // 2
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.time())

    settings = RewardConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=num_pairs,
        learning_rate=5e-4,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = RewardTrainer(
        model=model,
        args=settings,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
        callbacks=[Clock()],
    )
    trainer.train()
    return (times[-1] - times[0]) / (len(times) - 1) * len(times)


def run() -> Iterator[Row]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from training.alignment.tiny_lm import build_tiny_lm

    rows = rankings()
    texts = [
        text for example in sft_examples(0, 500) for text in (example["prompt"][-1]["content"], example["completion"])
    ]
    with tempfile.TemporaryDirectory() as scratch:
        backbone = Path(scratch) / "backbone"
        build_tiny_lm(texts, backbone)
        ours = train_here(rows, backbone, Path(scratch) / "ours")
        peer = train_with_trl(rows, backbone, Path(scratch) / "peer")
    yield Row("reward-model training, lists of 4, one epoch", ours, peer, "s", peer / ours, 2.0)
