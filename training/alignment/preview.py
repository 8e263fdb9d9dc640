"""Look at a judge before it is let at many responses: what it is sent about a few comparisons, and what it answers.

    prompts.jsonl   the comparisons, as `preferences.read_responses` takes them, with an id each
    preview.json    [{"id", "seconds", …what `judging.preview` tells}], before and after each is asked about

Answers come from the judge itself, never from the cache of scores, which would know neither their probabilities nor how
long they take.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from training.alignment import judging
from training.alignment.config import ConfigError, PreviewJudgeConfig
from training.alignment.preferences import PromptedResponses, read_responses
from training.alignment.reward import load_reward
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, write_json

PROMPTS, PREVIEW = "prompts.jsonl", "preview.json"


def preview_judge(config: PreviewJudgeConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Ask a judge about the comparisons in prompts.jsonl; what it says is in preview.json.

    Returns:
        {"num_comparisons", "num_questions", "num_unanswered", "seconds"}: the last without loading the judge.

    Raises:
        ConfigError: the member is no judge, or there is no comparison.
        Interrupted: `stop` became true.
    """
    judge: Any = load_reward(run_dir.locate(config.member))
    if not hasattr(judge, "judging"):
        raise ConfigError("member: is no judge")
    comparisons = list(islice(read_responses(run_dir.path / PROMPTS), config.num_comparisons))
    if not comparisons:
        raise ConfigError("num_comparisons: there is none to look at")
    told: list[dict[str, Any]] = []
    for comparison in comparisons:
        if stop():
            raise Interrupted(f"stopped after {len(told)} of {len(comparisons)} comparisons")
        begin = time.perf_counter()
        shown = _Shown(judge, comparison, lambda one: write_json(run_dir.path / PREVIEW, [*told, one]))
        answers = judging.preview(shown, comparison.prompt, comparison.responses)
        told.append({"id": comparison.id, "seconds": time.perf_counter() - begin, **answers})
        write_json(run_dir.path / PREVIEW, told)
        run_dir.log(step=len(told), phase="preview", progress=len(told) / len(comparisons))
    questions = [question for one in told for question in one["questions"]]
    return {
        "num_comparisons": len(told),
        "num_questions": len(questions),
        "num_unanswered": sum(question["value"] is None for question in questions),
        "seconds": sum(one["seconds"] for one in told),
    }


class _Shown:
    """A judge whose questions can be read before it has answered them, and where it never does."""

    def __init__(
        self, judge: judging.Judge, comparison: PromptedResponses, show: Callable[[dict[str, Any]], None]
    ) -> None:
        self.judge, self.comparison, self.show = judge, comparison, show
        self.judging = judge.judging
        self._questions: list[dict[str, Any]] = []

    def sent(self, question: judging.Question) -> str:
        return self.judge.sent(question)

    def ask(self, questions: Sequence[judging.Question]) -> list[judging.Answer]:
        self._questions += [
            {
                "responses": [self.comparison.responses.index(part.text) for part in question.responses],
                "text": self.sent(question),
                "value": None,
                "failure": "not yet",
            }
            for question in questions
        ]
        self.show({"id": self.comparison.id, "questions": self._questions})
        return self.judge.ask(questions)
