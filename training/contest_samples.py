"""What two policies answered to the same prompts, one answer each: pairs that people can judge.

Read from a run's files. A run that trains a policy leaves `samples_before.jsonl` and `samples_after.jsonl`, a response
in each line; a comparison of policies leaves `responses.jsonl` and `scores.jsonl`, a prompt in each line. The opponent
may also be people: answers of the project to the same prompts, those that they wrote or those that they like best.

Of several responses to a prompt the first counts, as it was drawn: the pairs are then a sample of what the policies
answer, and there is one vote for each prompt (see `annotate.stats.sequential`). The order of the pairs is drawn by
chance, once for ever, so that any number of first ones is a sample of the prompts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from annotate.identity import digest, messages_digest
from annotate.models import OVERALL, Judgment, Project, Response
from training import queries
from training.alignment_queries import messages_of, objects
from training.models import BEFORE, BEST, OPPONENTS, WRITTEN, TrainingRun
from training.queries import SavingRun
from training.report_figures import as_dict, dicts, is_number, read_json
from training.report_queries import REPORT

BEFORE_FILE, AFTER_FILE = "samples_before.jsonl", "samples_after.jsonl"
RESPONSES_FILE, SCORES_FILE = "responses.jsonl", "scores.jsonl"
AFTER = "after"
REWARDS = ("reward", "held_out_reward")
MAX_LINES = 500_000
MAX_NAME = 500  # characters
PROMPTS_AT_ONCE = 1000

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """A text, who gave it, and what rewards give it, where they were asked."""

    text: str
    source: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    prompt: Messages
    challenger: Answer
    opponent: Answer

    @property
    def scores(self) -> dict[str, list[float]]:
        """By reward, what it gives the two; only where it gives both something."""
        both = self.challenger.scores.keys() & self.opponent.scores.keys()
        return {name: [self.challenger.scores[name], self.opponent.scores[name]] for name in sorted(both)}


@dataclass(frozen=True)
class Pairs:
    """Pairs in the order in which they are to be asked, and prompts to which both say the same."""

    pairs: list[Pair]
    num_identical: int


def challengers(run: TrainingRun) -> list[str]:
    """Policies of the run's files that can be sent to annotators; of a run that trained one, that one."""
    if run.status != TrainingRun.Status.SUCCEEDED:
        return []
    if run.is_policy:
        return [AFTER] if (run.run_dir / AFTER_FILE).exists() else []
    if run.kind != TrainingRun.Kind.COMPARE_POLICIES:
        return []
    first = next(objects(run.run_dir / RESPONSES_FILE, 1), {})
    return [name for name in as_dict(first.get("responses")) if len(name) <= MAX_NAME and name not in {WRITTEN, BEST}]


def opponents(run: TrainingRun) -> list[str]:
    """Whom a challenger can be sent against; itself among them where there are several."""
    if not run.is_policy:
        return [*challengers(run), WRITTEN, BEST]
    return [*([BEFORE] if (run.run_dir / BEFORE_FILE).exists() else []), WRITTEN, BEST]


def saved_by(run: TrainingRun, user: Any = None) -> dict[str, SavingRun]:
    """By challenger and opponent, the run that saved it, where one that the user sees did."""
    if run.is_policy:
        return {AFTER: SavingRun(run.pk, run.name)}
    told = dicts(read_json(run.run_dir / REPORT).get("policies"))
    paths = {str(one.get("name")): str(one.get("path")) for one in told}
    saved = queries.saving_runs(list(paths.values()), user)
    return {name: saved[path] for name, path in paths.items() if path in saved}


def labels(run: TrainingRun) -> dict[str, str]:
    """What challengers and opponents are called where no run is named."""
    policies = challengers(run)
    return {name: name for name in policies} | {
        name: OPPONENTS[name] for name in opponents(run) if name not in policies
    }


def names(run: TrainingRun, user: Any = None) -> dict[str, str]:
    """What people call challengers and opponents; a policy that a run of the user's has saved is called after it."""
    return labels(run) | {name: saved.told for name, saved in saved_by(run, user).items()}


def pairs(run: TrainingRun, project: Project, challenger: str, opponent: str) -> Pairs:
    """What two policies answered to the same prompts, in an order drawn by chance."""
    own = _answers(run, challenger)
    others = _answers_of_people(run, project, opponent, own) if opponent in {WRITTEN, BEST} else _answers(run, opponent)
    found = [Pair(prompt, answer, others[key][1]) for key, (prompt, answer) in own.items() if key in others]
    differing = [pair for pair in found if pair.challenger.text != pair.opponent.text]
    return Pairs(
        sorted(differing, key=lambda pair: digest([run.pk, challenger, opponent, messages_digest(pair.prompt)])),
        len(found) - len(differing),
    )


Found = dict[str, tuple[Messages, Answer]]
"""By a prompt's digest."""


def _answers(run: TrainingRun, policy: str) -> Found:
    """The first answer of a policy to each prompt, if it is one that can be stored."""
    found: Found = {}
    for prompt, answer in _listed(run, policy):
        if prompt and (key := messages_digest(prompt)) not in found:
            found[key] = (prompt, answer)
    return {key: own for key, own in found.items() if all(map(_is_storable, _texts(*own)))}


def _texts(prompt: Messages, answer: Answer) -> list[str]:
    return [answer.text, *(one["content"] for one in prompt)]


def _listed(run: TrainingRun, policy: str) -> Iterator[tuple[Messages, Answer]]:
    if run.is_policy:
        path = run.run_dir / (BEFORE_FILE if policy == BEFORE else AFTER_FILE)
        return _listed_samples(path, source_of(run, policy))
    return _listed_responses(run.run_dir, policy, source_of(run, policy))


def _listed_samples(path: Path, source: str) -> Iterator[tuple[Messages, Answer]]:
    for told in objects(path, MAX_LINES):
        if isinstance(text := told.get("response"), str):
            scores = {name: told[name] for name in REWARDS if is_number(told.get(name))}
            yield _messages(told), Answer(text, source, scores)


def _listed_responses(folder: Path, policy: str, source: str) -> Iterator[tuple[Messages, Answer]]:
    """Scores stand in a file of their own, line by line, with policies in the same order."""
    scored = chain(objects(folder / SCORES_FILE, MAX_LINES), repeat({}))
    for told, scores in zip(objects(folder / RESPONSES_FILE, MAX_LINES), scored, strict=False):
        responses = as_dict(told.get("responses"))
        texts = responses.get(policy)
        if isinstance(texts, list) and texts and isinstance(texts[0], str):
            place = list(responses).index(policy)
            given = {"reward": scores.get("rewards"), "held_out_reward": scores.get("held_out")}
            firsts = {name: _at(_at(own, place), 0) for name, own in given.items()}
            yield (
                _messages(told),
                Answer(texts[0], source, {name: one for name, one in firsts.items() if is_number(one)}),
            )


def _at(values: Any, place: int) -> Any:
    return values[place] if isinstance(values, list) and place < len(values) else None


def _messages(told: dict[str, Any]) -> Messages:
    return [{"role": one["role"], "content": one["content"]} for one in messages_of(told)]


def _is_storable(text: str) -> bool:
    """Whether the database takes it: neither half a character nor a NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def source_of(run: TrainingRun, policy: str) -> str:
    """What a policy's answers are filed under; never shown to annotators.

    Runs by their numbers: the project may be open to people who do not see the run.
    """
    if run.is_policy:
        return f"run {run.pk}, before" if policy == BEFORE else f"run {run.pk}"
    saved = saved_by(run).get(policy)
    return f"{f'run {saved.pk}' if saved else policy[:150]}, in run {run.pk}"


# People's answers


def _answers_of_people(run: TrainingRun, project: Project, opponent: str, own: Found) -> Found:
    """Answers of the project to the same prompts; of those that the run's own policies gave, none."""
    sources = {source_of(run, policy) for policy in (BEFORE, AFTER, *challengers(run))}
    found: Found = {}
    for some in _chunks(list(own), PROMPTS_AT_ONCE):
        responses = Response.objects.filter(prompt__project=project, prompt__digest__in=some, copy=0)
        responses = responses.exclude(model__in=sources)
        chosen = _written(responses) if opponent == WRITTEN else _liked_best(project, some, responses)
        found |= {key: (own[key][0], Answer(one.content, one.model)) for key, one in chosen.items()}
    return found


def _written(responses: Any) -> dict[str, Response]:
    """By a prompt's digest the newest answer that a person wrote."""
    written = responses.filter(author__isnull=False).select_related("prompt").order_by("pk")
    return {one.prompt.digest: one for one in written}


def _liked_best(project: Project, prompts: Sequence[str], responses: Any) -> dict[str, Response]:
    """By a prompt's digest the answer that most likely comes first in a further judgment that it is in.

    By Laplace's rule of succession, so that one that came first once is not above one that did in nine of ten. What an
    annotator wrote while judging is first by that alone: that judgment says nothing of it.
    """
    first, seen = Counter[int](), Counter[int]()
    judged = Judgment.objects.filter(project=project, aspect=OVERALL, comparison__prompt__digest__in=prompts)
    for ranking, written in judged.values_list("ranking", "edited_response").iterator():
        groups = [others for group in ranking if (others := [one for one in group if one != written])]
        for place, group in enumerate(groups):
            seen.update(group)
            first.update(group if place == 0 else ())
    liked = [one for one in responses.select_related("prompt").order_by("-pk") if first[one.pk]]
    by_merit = sorted(liked, key=lambda one: (first[one.pk] + 1) / (seen[one.pk] + 2))
    return {one.prompt.digest: one for one in by_merit}  # of each prompt the best one is the last


def _chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
