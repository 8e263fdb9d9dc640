"""From whose judgments a reward has learned: what it must not be measured on, nor a combination of it fitted on.

Prompts are known by their digests. They are found by following what the reward's folder says: its run's preference set
and splits, its members, the models it was averaged from, and of a policy the rewards that it was trained by. What it
began from counts for nothing, for an implicit reward is what has changed since. Of a reward from elsewhere nothing is
known.
"""

import hashlib
from pathlib import Path

from training.alignment.baselines import learned_prompts
from training.alignment.combiner import member_paths
from training.alignment.config import (
    AverageWeightsConfig,
    CombineConfig,
    DpoConfig,
    LearningCurveConfig,
    RejectionSamplingConfig,
    RewardModelConfig,
    RlhfConfig,
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

TRAIN, VALIDATION, TEST = "train", "validation", "test"


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
    followed = set[str]()
    match config:
        case AverageWeightsConfig():
            return _all_trained_on(run_dir, config.models)
        case CombineConfig():
            splits = {VALIDATION, TEST} if config.num_folds else {VALIDATION}
        case SftConfig() if config.examples:
            return set()
        case RejectionSamplingConfig() | RlhfConfig():
            splits, followed = {TRAIN}, _all_trained_on(run_dir, config.reward_model)
        case RewardModelConfig() | SftConfig() | DpoConfig():
            splits = {TRAIN} | ({VALIDATION} if isinstance(config, LearningCurveConfig) else set())
        case _:
            return set()
    path = run_dir.resolve(config.preferences) if config.preferences else None
    if path is None or not path.is_file():
        return followed
    return followed | {prompt_digest(ranked) for ranked in read_rankings(path) if ranked.split in splits}


def _all_trained_on(run_dir: RunDir, names: str) -> set[str]:
    return set[str]().union(*(trained_on(Path(run_dir.locate(name))) for name in split_names(names)))
