"""Combine several rewards into one, and tell what each way of combining is worth.

    scores.sqlite3   members' scores, where no cache is named by PLUMBLINE_SCORE_CACHE: a run that stopped goes on there
    report.json      members and combiners on the same held-out pairs, paired; who agrees with whom; what each adds
    model/           the combiner that was asked for: a reward like any other

**Honest.** No prompt that a member was trained on is used, neither to fit nor to measure. Combiners are fitted on the
validation split and measured on the test split; or, with `num_folds`, crosswise on both: each fold of prompts is
measured by combiners that were fitted on the others, and what is saved is fitted on all.

One member is in memory at a time.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from training.alignment import ensemble, measures
from training.alignment.bayesian_averaging import describe_collapse
from training.alignment.combiner import Combiner, Recipe, Unused, fit_recipe, known
from training.alignment.config import COMBINING, CombineConfig, ConfigError, split_names
from training.alignment.ensemble import Bools, Floats, Ints, JudgedScores, Standardisation
from training.alignment.fusion import gate_groups
from training.alignment.measures import Clustered, Figure
from training.alignment.member_checks import problems, temperatures
from training.alignment.member_config import is_member, read_member
from training.alignment.preferences import RankedResponses, read_rankings
from training.alignment.prompt_features import PromptFeatures
from training.alignment.provenance import TEST, VALIDATION, prompt_digest, trained_on
from training.alignment.reward import COMBINER, load_reward, score_cache, told_by
from training.alignment.reward_model import join_processes, score_rankings
from training.alignment.run_dir import RunDir, StopFlag, replace_folder, write_json
from training.alignment.score_cache import ScoreCache

MAX_DISAGREEMENTS = 50
SCORING_SHARE = 0.8  # of the progress


def combine(config: CombineConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Score with all members, fit every way of combining, measure, and save the one that was asked for.

    Returns:
        {"model", "method", "accuracy", "interval", "log_loss", "log_loss_gain" over the best member and its
        "log_loss_gain_interval", "num_members", "num_used", "num_fit_rankings", "num_pairs", "num_prompts",
        "num_left_out", "num_missing"}, and "unanswered" where there are some: of each judge, how many questions
        for which reason.

    Raises:
        ConfigError: fewer than two members, or no judgments to fit or to measure on are left.
        Interrupted: `stop` became true; scores that were computed are kept.
    """
    paths = [run_dir.locate(name) for name in split_names(config.members)]
    if len(set(paths)) < 2:
        raise ConfigError("members: name two or more different rewards")
    accelerator = join_processes()
    incumbent = run_dir.locate(config.incumbent)
    rankings, num_left_out, can_compare = _rankings(config, run_dir, paths, incumbent)
    everyone = [*paths, *([incumbent] if can_compare and incumbent not in paths else [])]
    cache = score_cache() or ScoreCache(run_dir.path / "scores.sqlite3")
    digests: list[str] = []
    told: list[dict[str, Any]] = []
    columns: list[list[list[float]]] = []
    for number, path in enumerate(everyone):
        reward = load_reward(path, accelerator.device, max_tokens=config.max_tokens, aspect=config.aspect, cache=cache)
        own = []
        for chunk in score_rankings(accelerator, reward, rankings, stop):
            own += [scored.scores for scored in chunk]
            if accelerator.is_main_process:
                progress = SCORING_SHARE * (number + len(own) / len(rankings)) / len(everyone)
                run_dir.log(step=number, phase="score", progress=progress)
        columns.append(own)
        digests.append(reward.digest)
        told.append(told_by(reward))
        del reward
    run = _Combining(config, paths, rankings, columns[: len(paths)], run_dir.locate(config.prompt_encoder))
    found = run.report()
    for member, own_words in zip(found["members"], told, strict=False):
        member.update(own_words)
    if can_compare:
        found |= {"against_incumbent": run.against(incumbent, columns[everyone.index(incumbent)])}
    if accelerator.is_main_process:
        write_json(run_dir.path / "report.json", {**found, "num_left_out": num_left_out})
        members = tuple(Unused(digest) for digest in digests[: len(paths)])
        has_gate = run.recipe.network is not None and run.recipe.network.has_gate
        features = run.gate_features if has_gate else None
        combiner = Combiner(run.recipe, members, tuple(paths), config.aspect, features)
        replace_folder(run_dir.model, combiner.save)
        run_dir.log(step=len(everyone), phase="combine", progress=1.0)
    return _headlines(found, run, num_left_out, str(run_dir.model))


# What there is to learn from


def _rankings(
    config: CombineConfig, run_dir: RunDir, paths: Sequence[str], incumbent: str
) -> tuple[list[RankedResponses], int, bool]:
    """Judged rankings that no member was trained on, how many were left out, and if the incumbent is compared with.

    The incumbent is only measured: what is fitted on may well be what it, too, was fitted on. Where it has learned from
    all that could be measured, it is not compared with, and nothing is left out for it.
    """
    splits = {VALIDATION, TEST}
    told = read_rankings(run_dir.resolve(config.preferences))
    decided = [one for one in told if one.split in splits and one.aspect == config.aspect and one.is_decided]
    seen = set[str]().union(*(trained_on(Path(path)) for path in paths))
    fresh = [ranked for ranked in decided if prompt_digest(ranked) not in seen]
    wanted = splits if not config.num_folds else {str(ranked.split) for ranked in fresh} or splits
    if missing := sorted(wanted - {str(ranked.split) for ranked in fresh}):
        raise ConfigError(
            f"preferences: no decided judgment of aspect {config.aspect} is left in the {' and '.join(missing)} split"
            + (f"; {len(decided) - len(fresh)} are on prompts that a member was trained on" if decided else "")
        )
    learned = trained_on(Path(incumbent)) if incumbent else set[str]()
    honest = [
        ranked
        for ranked in fresh
        if prompt_digest(ranked) not in learned or (ranked.split == VALIDATION and not config.num_folds)
    ]
    can_compare = bool(incumbent and honest) and (bool(config.num_folds) or any(one.split == TEST for one in honest))
    kept = honest if can_compare else fresh
    return kept, len(decided) - len(kept), can_compare


# Fitting and measuring


class _Combining:
    """Every way of combining, fitted and measured."""

    def __init__(
        self,
        config: CombineConfig,
        paths: Sequence[str],
        rankings: Sequence[RankedResponses],
        columns: Sequence[Sequence[Sequence[float]]],
        encoder: str = "",
    ) -> None:
        self.config, self.paths, self.rankings = config, list(paths), list(rankings)
        self.scores = known(padded(columns, [len(one.responses) for one in rankings]))
        self.is_test = np.array([ranked.split == TEST for ranked in rankings])
        self.prompts = measures.numbered(prompt_digest(ranked) for ranked in rankings)
        self.gate_features: PromptFeatures | None = None
        features = None
        if config.has_gate:
            self.gate_features = PromptFeatures(encoder)
            features = self.gate_features([ranked.prompt for ranked in rankings])
        self.standardisation = Standardisation.fit(self._reference(self._fit_mask()))
        self.judged = JudgedScores(
            scores=self.standardisation.apply(self.scores),
            groups=_groups(rankings, self.scores.shape[1]),
            prompts=self.prompts,
            weights=np.array([ranked.weight for ranked in rankings], dtype=np.float64),
            features=features,
        )
        self.fits: dict[tuple[str, bytes, bytes], Recipe] = {}
        self.failures: dict[str, str] = {}
        self.folds = self._folds()
        self.problems = problems(self.judged.select(self._fit_mask()))
        self.is_used = np.array([problem is None for problem in self.problems])
        if not self.is_used.any():
            told = ", ".join(f"{path} is {problem}" for path, problem in zip(self.paths, self.problems, strict=True))
            raise ConfigError(f"members: none can be used; {told}")

    def _folds(self) -> list[tuple[Bools, Bools]]:
        """(fit, measure) masks of the rankings; a prompt is in one of them only."""
        if not self.config.num_folds:
            return [(~self.is_test, self.is_test)]
        num_prompts = int(self.prompts.max()) + 1
        num_folds = min(self.config.num_folds, num_prompts)
        if num_folds < 2:
            raise ConfigError("num_folds: there is one prompt only")
        fold_of = np.random.default_rng(self.config.seed).permutation(num_prompts) % num_folds
        return [(fold_of[self.prompts] != fold, fold_of[self.prompts] == fold) for fold in range(num_folds)]

    def _fit_mask(self) -> Bools:
        """What may be learned from where one thing is learned for all."""
        return np.ones(len(self.rankings), dtype=bool) if self.config.num_folds else ~self.is_test

    def _measured(self) -> Bools:
        return np.any([measured for _, measured in self.folds], axis=0)

    def _reference(self, which: Bools) -> Floats:
        """(N, M) members' own scores of the responses of some rankings, each once."""
        return self._responses(which)[0]

    def _responses(self, which: Bools) -> tuple[Floats, Ints]:
        """(N, M) members' own scores of different responses, and (N,) a ranking that each is in."""
        places: dict[tuple[int, str], tuple[int, int]] = {}
        for number in np.flatnonzero(which):
            for place, text in enumerate(self.rankings[number].responses):
                places.setdefault((int(self.prompts[number]), text), (int(number), place))
        rows, columns = (np.array(list(one)) for one in zip(*places.values(), strict=True))
        return self.scores[rows, columns], rows

    def fit(self, method: str, which: Bools, is_used: Bools | None = None) -> Recipe:
        """A method learned from some of the rankings, by some of the members."""
        used = self.is_used if is_used is None else is_used
        key = (method, which.tobytes(), used.tobytes())
        if key not in self.fits:
            self.fits[key] = self._fit(method, which, used)
        return self.fits[key]

    def _fit(self, method: str, which: Bools, used: Bools) -> Recipe:
        judged = self.judged.select(which)
        reference, rows = self._responses(which)
        recipe = fit_recipe(method, judged, self.standardisation, is_used=used, reference=reference, config=self.config)
        features = None if self.judged.features is None else self.judged.features[rows]
        return recipe.normalised(reference, features, judged)

    def held_out(self, method: str, is_used: Bools | None = None) -> Floats:
        """(B, K) log-odds by combiners that were fitted on other prompts; nan where nothing is measured."""
        found = np.full(self.judged.groups.shape, np.nan)
        for fitted, measured in self.folds:
            used = self._sound(fitted) & (True if is_used is None else is_used)
            if used.any():
                recipe = self.fit(method, fitted, used)
                found[measured] = recipe.log_odds * recipe.judge(self.judged.select(measured))
        return found

    def _sound(self, which: Bools) -> Bools:
        """(M,) the members that nothing is wrong with on these rankings; all that take part, where none is."""
        found = np.array([problem is None for problem in problems(self.judged.select(which))])
        return found if found.any() else self.is_used

    @cached_property
    def recipe(self) -> Recipe:
        """What is saved: fitted on all that may be learned from."""
        return self.fit(self.config.method, self._fit_mask())

    @cached_property
    def combined(self) -> dict[str, Floats]:
        return {method: self._tried(method) for method in dict.fromkeys([*COMBINING, self.config.method])}

    def _tried(self, method: str) -> Floats:
        """What cannot be fitted is told, and costs the others nothing, unless it is what was asked for."""
        try:
            self.fit(method, self._fit_mask())
            return self.held_out(method)
        except (RuntimeError, ValueError) as error:
            if method == self.config.method:
                raise ConfigError(f"method: {method} cannot be fitted to these judgments: {error}") from error
            self.failures[method] = f"Not fitted: {error}"
            return np.full(self.judged.groups.shape, np.nan)

    @cached_property
    def by_member(self) -> list[Floats]:
        """(B, K) log-odds by each member alone, at temperatures that were fitted on other prompts."""
        found = np.full(self.judged.scores.shape, np.nan)
        for fitted, measured in self.folds:
            found[measured] = self.judged.scores[measured] / temperatures(self.judged.select(fitted))
        return list(found.transpose(2, 0, 1))

    @cached_property
    def temperatures(self) -> Floats:
        """(M,) of the members' standardised scores, over all that may be learned from."""
        return temperatures(self.judged.select(self._fit_mask()))

    def report(self) -> dict[str, Any]:
        config = self.config
        members = [self._member(number) for number in range(len(self.paths))]
        best = max(self._usable(), key=lambda number: -_value(members[number]["log_loss"], math.inf))
        measured = self._measured()
        return {
            "kind": "combine",
            "method": config.method,
            "num_fit": {
                "rankings": int(self._fit_mask().sum()),
                "prompts": len(np.unique(self.prompts[self._fit_mask()])),
            },
            "num_test": {
                "rankings": int(measured.sum()),
                "prompts": len(np.unique(self.prompts[measured])),
                "pairs": len(self._pairs(self.combined[config.method])[0]),
            },
            "cross_fitted": len(self.folds) if config.num_folds else 0,
            "incumbent": config.incumbent or None,
            "members": members,
            "combiners": [self._combiner(method, best) for method in self.combined],
            "correlation": self._correlation(),
            "leave_one_out": self._leave_one_out(),
            "gate": self._gate(),
            "disagreements": self._disagreements(),
        }

    def against(self, name: str, scores: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The chosen combiner beside another reward, on the same pairs; that one at its best temperature."""
        column = padded([scores], [len(one.responses) for one in self.rankings])[:, :, 0]
        other = np.full(column.shape, np.nan)
        for fitted, measured in self.folds:
            alone = replace(self.judged.select(fitted), scores=column[fitted][:, :, None], features=None)
            other[measured] = column[measured] / temperatures(alone)[0]
        return {"name": name, **self._paired(self.combined[self.config.method], other)}

    def _usable(self) -> list[int]:
        return np.flatnonzero(self.is_used).tolist()

    def _member(self, number: int) -> dict[str, Any]:
        scores = self.scores[:, :, number]
        is_response = np.arange(scores.shape[1]) < np.array([len(one.responses) for one in self.rankings])[:, None]
        return {
            "name": self.paths[number],
            "path": self.paths[number],
            "kind": _kind(Path(self.paths[number])),
            **self._figures(self.by_member[number]),
            "num_missing": int((np.isnan(scores) & is_response).sum()),
            "temperature": float(self.temperatures[number] * self.standardisation.stds[number]),
            "problem": self.problems[number],
        }

    def _combiner(self, method: str, best: int) -> dict[str, Any]:
        own = self.combined[method]
        recipe = None if method in self.failures else self.fit(method, self._fit_mask())
        mean = self.combined["mean"]
        return {
            "method": method,
            **self._figures(own),
            "against_best_member": {"name": self.paths[best], **self._paired(own, self.by_member[best])},
            "against_mean": {"name": "mean", **self._paired(own, mean)},
            "weights": recipe and _shares(recipe, self.paths),
            "warning": self._warning(method, recipe) if recipe else self.failures[method],
        }

    def _warning(self, method: str, recipe: Recipe) -> str | None:
        if method != "bayesian_average" or recipe.weights is None:
            return None
        shares = recipe.weights[self.is_used] * self.temperatures[self.is_used]
        losses = {
            name: _value(self._figures(self.combined[name])["log_loss"], math.nan) for name in (method, "stacking")
        }
        return describe_collapse(shares / shares.sum(), losses[method], losses["stacking"])

    def _pairs(self, log_odds: Floats) -> tuple[Floats, Ints]:
        """(N,) margins of measured, ordered pairs, nan where one has no score, and (N,) the number of their prompt."""
        measured = self.judged.select(self._measured())
        pairs = replace(measured, scores=log_odds[self._measured()][:, :, None], features=None).ordered_pairs()
        return pairs.margins[:, 0], measured.prompts[pairs.rankings]

    def _figures(self, log_odds: Floats) -> dict[str, Figure]:
        margins, prompts = self._pairs(log_odds)
        known = np.isfinite(margins)
        by_prompt = Clustered(prompts[known], self.config.seed)
        return {
            "accuracy": by_prompt.share(measures.right(margins[known])),
            "log_loss": by_prompt.mean(measures.log_losses(margins[known])),
        }

    def _paired(self, first: Floats, second: Floats) -> dict[str, Any]:
        """Gains of the first on the pairs that both have scores for."""
        (own, prompts), (other, _) = self._pairs(first), self._pairs(second)
        known = np.isfinite(own) & np.isfinite(other)
        own, other = own[known], other[known]
        by_prompt = Clustered(prompts[known], self.config.seed)
        return {
            "accuracy_gain": by_prompt.mean(measures.right(own) - measures.right(other), (-1, 1)),
            "log_loss_gain": by_prompt.mean(measures.log_losses(other) - measures.log_losses(own)),
            "mcnemar_p": measures.mcnemar(int(((own > 0) & (other <= 0)).sum()), int(((own <= 0) & (other > 0)).sum())),
            "num_pairs": len(own),
        }

    def _leave_one_out(self) -> list[dict[str, Any]]:
        """What is set by hand is set for all members."""
        is_learned = self.config.method in COMBINING and self.is_used.sum() > 1
        return [self._without(number) for number in self._usable()] if is_learned else []

    def _without(self, number: int) -> dict[str, Any]:
        """What the chosen method gains by having a member."""
        rest = self.is_used & (np.arange(len(self.paths)) != number)
        gains = self._paired(self.combined[self.config.method], self.held_out(self.config.method, rest))
        return {"name": self.paths[number], **gains}

    def _correlation(self) -> list[list[float | None]]:
        """(M, M) Pearson's correlation of members' scores within prompts, over what both have scored."""
        return [[self._correlated(one, other) for other in range(len(self.paths))] for one in range(len(self.paths))]

    def _correlated(self, one: int, other: int) -> float | None:
        scores = self.scores[:, :, [one, other]]
        scores = np.where(np.isnan(scores).any(-1, keepdims=True), np.nan, scores)
        centred = (scores - ensemble.mean(scores.transpose(0, 2, 1))[:, None, :]).reshape(-1, 2)
        first, second = centred[np.isfinite(centred).all(1)].T
        size = math.sqrt((first @ first) * (second @ second))
        return float(first @ second / size) if size > 0 else None

    def _gate(self) -> dict[str, Any] | None:
        network, features = self.recipe.network, self.judged.features
        if network is None or features is None or not network.has_gate:
            return None
        names = [self.paths[number] for number in self._usable()]
        texts = [ranked.prompt[-1]["content"] for ranked in self.rankings]
        return {"groups": gate_groups(network, features, texts, names, seed=self.config.seed)}

    def _disagreements(self) -> list[dict[str, Any]]:
        """Pairs on which members differ most about how much better one response is, the preferred one first.

        They are of what may be learned from: to ask about test prompts would make a test of what is contested only.
        """
        found: list[tuple[float, int, int, int]] = []
        scores = self.judged.scores[:, :, self.is_used]
        for number in np.flatnonzero(self._fit_mask()):
            for first, second in self.rankings[number].ordered_places():
                differences = scores[number, first] - scores[number, second]
                if np.isfinite(differences).all():
                    found.append((float(differences.std()), int(number), first, second))
        found.sort(key=lambda one: (-one[0], *one[1:]))
        return [self._disagreement(*one) for one in _one_each(found)]

    def _disagreement(self, spread: float, number: int, first: int, second: int) -> dict[str, Any]:
        ranked = self.rankings[number]
        own = self.judged.scores[number][[first, second]]
        return {
            "id": ranked.id,
            "prompt": [dict(message) for message in ranked.prompt],
            "responses": [ranked.responses[first], ranked.responses[second]],
            "scores": {self.paths[member]: own[:, member].tolist() for member in self._usable()},
            "spread": spread,
        }


def padded(columns: Sequence[Sequence[Sequence[float]]], sizes: Sequence[int]) -> Floats:
    """M members' scores of B rankings' responses, (K,) each -> (B, K, M), nan in padding."""
    found = np.full((len(sizes), max(sizes), len(columns)), np.nan)
    for member, rows in enumerate(columns):
        for number, own in enumerate(rows):
            found[number, : len(own), member] = own
    return found


def _groups(rankings: Sequence[RankedResponses], width: int) -> Ints:
    found = np.full((len(rankings), width), -1, dtype=np.int64)
    for number, ranked in enumerate(rankings):
        found[number, : len(ranked.responses)] = ranked.groups
    return found


def _one_each(found: Sequence[tuple[float, int, int, int]]) -> Iterator[tuple[float, int, int, int]]:
    """The first pair of each ranking, up to the most that are told."""
    seen = set[int]()
    for one in found:
        if len(seen) < MAX_DISAGREEMENTS and one[1] not in seen:
            seen.add(one[1])
            yield one


def _shares(recipe: Recipe, names: Sequence[str]) -> dict[str, float] | None:
    if recipe.weights is None:
        return None
    shares = recipe.weights / np.abs(recipe.weights).sum()
    return {name: float(share) for name, share in zip(names, shares, strict=True)}


def _kind(path: Path) -> str:
    if is_member(path):
        return read_member(path).kind
    return "combiner" if (path / COMBINER).is_file() else "reward_model"


def _value(figure: Figure, otherwise: float) -> float:
    return otherwise if figure is None else float(figure["value"])


def _headlines(found: dict[str, Any], run: _Combining, num_left_out: int, model: str) -> dict[str, Any]:
    chosen = next(one for one in found["combiners"] if one["method"] == found["method"])
    gain = chosen["against_best_member"]["log_loss_gain"]
    unanswered = {one["path"]: one["unanswered"] for one in found["members"] if "unanswered" in one}
    return {
        "model": model,
        "method": found["method"],
        "accuracy": chosen["accuracy"] and chosen["accuracy"]["value"],
        "interval": chosen["accuracy"] and chosen["accuracy"]["interval"],
        "log_loss": chosen["log_loss"] and chosen["log_loss"]["value"],
        "log_loss_gain": gain and gain["value"],
        "log_loss_gain_interval": gain and gain["interval"],
        "num_members": len(run.paths),
        "num_used": int(run.is_used.sum()),
        "num_fit_rankings": found["num_fit"]["rankings"],
        "num_pairs": found["num_test"]["pairs"],
        "num_prompts": found["num_test"]["prompts"],
        "num_left_out": num_left_out,
        "num_missing": sum(member["num_missing"] for member in found["members"]),
        **({"unanswered": unanswered} if unanswered else {}),
    }
