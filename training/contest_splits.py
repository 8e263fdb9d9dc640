"""Into which split of the next preference set the votes on a policy's answers come.

Policies are sampled on prompts that were held out from their training, which are those of a set's test split. Frozen
again with the same seed and shares these are test prompts again: rewards are then measured on the votes, which is worth
having, but learn nothing from them. Another seed draws the splits anew, so that most of the votes are trained on, and
so are prompts on which older models were measured.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from annotate.models import Project
from training.export import split_of
from training.models import PreferenceSet
from training.services import FRACTIONS

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Splits:
    """Where the votes go if the project is frozen as it was last, and with another seed."""

    words: str
    other_seed: int


def splits(project: Project, prompts: Sequence[str]) -> Splits | None:
    """Of prompts by their digests; nothing where there are none."""
    if not prompts:
        return None
    latest = PreferenceSet.objects.filter(project=project).order_by("-pk").first()
    seed, fractions = (latest.seed, latest.fractions) if latest else (0, FRACTIONS)
    how = f"Divided as {latest} is, with seed {seed}" if latest else f"With seed {seed}"
    now, anew = (_counted(prompts, *drawn) for drawn in ((seed, fractions), (seed + 1, FRACTIONS)))
    return Splits(
        f"Every preference set frozen from now on holds these votes. {how}, {now[TEST]:,} of the {len(prompts):,} "
        f"prompts are to measure rewards with, which learn nothing from them, and {now[TRAIN]:,} to train on. With "
        f"seed {seed + 1} {anew[TRAIN]:,} are to train on, but so are prompts on which older models were measured.",
        seed + 1,
    )


def _counted(prompts: Sequence[str], seed: int, fractions: Sequence[float]) -> Counter[str]:
    return Counter(split_of(prompt, seed=seed, fractions=fractions) for prompt in prompts)
