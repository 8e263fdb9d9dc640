"""From whose judgments a reward has learned: what it must not be measured on, nor a combination of it fitted on.

Prompts are known by their digests. They are found by following what the reward's folder says: its run's preference set
and splits, its members, the models it was averaged from. Of a reward from elsewhere nothing is known.
"""

import hashlib
from pathlib import Path

from training.alignment.baselines import learned_prompts
from training.alignment.combiner import member_paths
from training.alignment.config import (
    AverageWeightsConfig,
    CombineConfig,
    LearningCurveConfig,
    RejectionSamplingConfig,
    RewardModelConfig,
    SftConfig,
    split_names,
)
from training.alignment.member_config import (
    ImplicitRewardMember,
    RewardModelMember,
    WordsMember,
    is_member,
    read_member,
)
from training.alignment.preferences import RankedResponses, prompt_key, read_rankings
from training.alignment.reward import COMBINER
from training.alignment.run_dir import RunDir

VALIDATION, TEST = "validation", "test"


def prompt_digest(ranked: RankedResponses) -> str:
    return hashlib.sha256(prompt_key(ranked.prompt).encode()).hexdigest()


def trained_on(path: Path) -> set[str]:
    """Digests of the prompts from whose judgments the reward at a path has learned; of one from elsewhere, none known.

    A combiner has learned from those it was fitted on, and by its members from theirs.
    """
    if is_member(path):
        return _member_trained_on(path)
    found = set[str]()
    if (path / COMBINER).is_file():
        found = found.union(*(trained_on(Path(member)) for member in member_paths(path)))
    run_dir = RunDir(path.parent)
    return found | _run_trained_on(run_dir) if (run_dir.path / "run.json").is_file() else found


def _member_trained_on(folder: Path) -> set[str]:
    member = read_member(folder)
    if isinstance(member, WordsMember):
        return learned_prompts(folder)
    models = [member.model] if isinstance(member, RewardModelMember) else []
    if isinstance(member, ImplicitRewardMember):
        models = [member.policy, member.reference_policy]
    return set[str]().union(*(trained_on(folder / model) for model in models))


def _run_trained_on(run_dir: RunDir) -> set[str]:
    config = run_dir.config()
    match config:
        case AverageWeightsConfig():
            return set[str]().union(*(trained_on(Path(run_dir.locate(name))) for name in split_names(config.models)))
        case CombineConfig():
            splits = {VALIDATION, TEST} if config.num_folds else {VALIDATION}
        case RewardModelConfig() | SftConfig() | RejectionSamplingConfig():
            splits = {"train"} | ({VALIDATION} if isinstance(config, LearningCurveConfig) else set())
        case _:
            return set()
    path = run_dir.resolve(config.preferences) if config.preferences else None
    if path is None or not path.is_file():
        return set()
    return {prompt_digest(ranked) for ranked in read_rankings(path) if ranked.split in splits}
