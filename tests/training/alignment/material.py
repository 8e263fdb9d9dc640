"""What several tests of training need: rankings that a small model can learn, and a flag that comes up by itself."""

import json
import random
from pathlib import Path

from training.alignment.reward_model import RewardModel
from training.alignment.run_dir import StopFlag

WORDS = ["eggs", "rice", "water", "salt", "boil", "minutes", "please", "thank", "1", "2", "<|end|>", "é", "你好"]


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


def random_pairs(n: int, seed: int = 0) -> list:
    draw = random.Random(seed)

    def text(longest: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))

    return [([{"role": "user", "content": text(20)}], text(draw.choice([3, 40]))) for _ in range(n)]


def alone(model: RewardModel, pairs: list) -> list[float]:
    return [model.score([pair])[0] for pair in pairs]
