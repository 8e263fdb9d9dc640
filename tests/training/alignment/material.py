"""What several tests of training need: rankings that a small model can learn, and a flag that comes up by itself."""

import json
import math
import random
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig

from training.alignment.reward_model import RewardModel
from training.alignment.run_dir import StopFlag

WORDS = ["eggs", "rice", "water", "salt", "boil", "minutes", "please", "thank", "1", "2", "<|end|>", "é", "你好"]
SPLITS = ("train",) * 8 + ("validation", "test")


class StopAt(StopFlag):
    """Asks to stop from the n-th time on that it is looked at."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def __call__(self) -> bool:
        self.n -= 1
        return self.n <= 0


def write_rankings(path: Path, *, num_train: int, num_validation: int, num_test: int, seed: int = 0) -> Path:
    """Rankings of two to four responses that a small model can learn: more eggs are better, equally many tie."""
    draw = random.Random(seed)
    splits = ["train"] * num_train + ["validation"] * num_validation + ["test"] * num_test
    with path.open("w", encoding="utf-8") as file:
        for number, split in enumerate(splits):
            num_eggs = [draw.randrange(5) for _ in range(draw.choice([2, 2, 3, 4]))]
            if len(set(num_eggs)) == 1 and number % 10:
                num_eggs[0] = (num_eggs[0] + 1) % 5
            texts = [draw.sample(["eggs"] * n + ["salt"] * (4 - n), 4) for n in num_eggs]
            groups = [[place for place, n in enumerate(num_eggs) if n == wanted] for wanted in range(4, -1, -1)]
            row = {
                "id": f"{number:04}",
                "prompt": [{"role": "user", "content": f"What do I put into dish {number // 2}?"}],
                "responses": [{"role": "assistant", "content": " ".join(text)} for text in texts],
                "ranking": [group for group in groups if group],
                "annotator": None,
                "aspect": "overall",
                "split": split,
            }
            file.write(json.dumps(row) + "\n")
    return path


def write_length_world(path: Path, num_prompts: int, splits: tuple = SPLITS, **nats_per_doubling: float) -> Path:
    """Judgments that follow the number of eggs, and by so much the length, by aspect."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(num_prompts):
            eggs = [draw.randrange(5) for _ in range(4)]
            words = [["eggs"] * n + ["salt"] * (4 - n) + ["thank"] * draw.choice([0, 2, 4, 8]) for n in eggs]
            texts = [" ".join(draw.sample(one, len(one))) for one in words]
            for aspect, nats in nats_per_doubling.items():
                chance = [-math.log(-math.log(draw.random())) for _ in texts]
                seen = [2 * n + nats * math.log2(len(text)) for n, text in zip(eggs, texts, strict=True)]
                row = {
                    "prompt": [{"role": "user", "content": f"What do I put into dish {number}?"}],
                    "responses": [{"role": "assistant", "content": text} for text in texts],
                    "ranking": [[place] for place in sorted(range(4), key=lambda at: -seen[at] - chance[at])],
                    "aspect": aspect,
                    "split": splits[number % len(splits)],
                }
                file.write(json.dumps(row) + "\n")
    return path


def random_pairs(n: int, seed: int = 0) -> list:
    draw = random.Random(seed)

    def text(longest: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))

    return [([{"role": "user", "content": text(20)}], text(draw.choice([3, 40]))) for _ in range(n)]


def alone(model: RewardModel, pairs: list) -> list[float]:
    return [model.score([pair])[0] for pair in pairs]


def save_backbone(folder: Path, config: PreTrainedConfig, tokenizer_folder: Path) -> Path:
    """An untrained model with another's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config.update({"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
