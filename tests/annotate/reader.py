"""A process of its own that reads exported files as others do: `datasets` loads them, TRL trains on the pairs.

    python -m tests.annotate.reader WORK_FOLDER RANKINGS PAIRS

Prints one JSON line: the rows as loaded, their types, and how far TRL's RewardTrainer came.
"""

import json
import math
import sys
from pathlib import Path

from datasets import load_dataset  # noqa: TID253 -- nothing but this process loads it
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: TID253
from trl import RewardConfig, RewardTrainer  # noqa: TID253

from training.alignment.tiny_lm import build_tiny_lm


def load(path: str, cache: Path):
    return load_dataset("json", data_files=path, split="train", cache_dir=str(cache))


def train(pairs, folder: Path) -> dict[str, object]:
    texts = [message["content"] for row in pairs for side in row.values() for message in side]
    build_tiny_lm(texts, folder / "backbone", vocabulary_size=320, hidden_size=32, num_layers=2, num_heads=2)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "backbone", num_labels=1)
    options = RewardConfig(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    trainer = RewardTrainer(model=model, args=options, train_dataset=pairs, processing_class=tokenizer)
    output = trainer.train()
    return {"steps": output.global_step, "is_finite": math.isfinite(output.training_loss)}


def main(folder: str, rankings: str, pairs: str) -> None:
    work = Path(folder)
    loaded = {"rankings": load(rankings, work / "cache"), "pairs": load(pairs, work / "cache")}
    told = {
        name: {"rows": list(rows), "types": {key: str(kind) for key, kind in rows.features.items()}}
        for name, rows in loaded.items()
    }
    sys.stdout.write(json.dumps({**told, "trained": train(loaded["pairs"], work)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
