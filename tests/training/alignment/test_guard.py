import json
import math
from dataclasses import replace

import numpy as np
import pytest

from training.alignment.guard import (
    HELD_OUT_FALLS,
    SPREAD,
    Alarm,
    Check,
    Guard,
    fit_best_of_n,
    fit_rl,
    lead,
    mean_interval,
)

NUM_PROMPTS, NUM_CHECKS = 64, 40
DISTANCES = np.linspace(0, 8, NUM_CHECKS)
BEST_OF_N = DISTANCES * (1.0 - 0.125 * DISTANCES)  # highest at 4, where it is 2
RL = DISTANCES * (
    1.3 - 0.7 * np.log(np.maximum(DISTANCES, 1e-9))
)  # highest at exp(1.3 / 0.7 - 1) = 2.36, where it is 1.65
RISING = np.sqrt(DISTANCES)


def check(step: int, reward: float, held_out: list[float | None], spread: float | None = None) -> Check:
    known = [value for value in held_out if value is not None]
    return Check(
        step=step,
        reward=reward,
        held_out=sum(known) / len(known),
        reward_by_prompt=(reward,) * len(held_out),
        held_out_by_prompt=tuple(held_out),
        spread=spread,
        kl=float(step),
        length=10.0,
        entropy=1.0,
        repetition=0.0,
        diversity=1.0,
        ended=1.0,
    )


def even(step: int, reward: float, held_out: float, spread: float | None = None) -> Check:
    """A check without noise: all prompts fare alike."""
    return check(step, reward, [held_out] * 4, spread)


def world(gold: np.ndarray, seed: int, noise: float = 1.0) -> list[Check]:
    """Checks of a policy whose proxy rises while each prompt's held-out reward follows `gold`, in its own measure.

    The noise is that of four responses to a prompt whose rewards deviate by 2 `noise`.
    """
    rng = np.random.default_rng(seed)
    level, slope = rng.normal(0, 1, NUM_PROMPTS), rng.gamma(4, 0.25, NUM_PROMPTS)
    values = level + slope * gold[:, None] + rng.normal(0, noise, (len(gold), NUM_PROMPTS))
    return [check(step, float(step), row.tolist()) for step, row in enumerate(values)]


def watched(checks: list[Check], **settings) -> Guard:
    guard = Guard(**{"patience": 3, "mode": "stop"} | settings)
    for one in checks:
        if guard.see(one):
            break
    return guard


def test_held_out_reward_that_falls_while_the_reward_rises_raises_an_alarm_after_patience():
    checks = [even(step, step, held_out) for step, held_out in enumerate([0.0, 1.0, 3.0, 2.0, 1.0, 0.5, 0.0])]
    guard = Guard(patience=3, mode="stop")

    raised = [guard.see(one) for one in checks]

    alarm = Alarm(
        5,
        HELD_OUT_FALLS,
        2,
        "The reward rose while the held-out reward fell: from 3 at step 2 to 0.5 at step 5, beyond what chance "
        "explains at 3 checks in a row.",
    )
    assert raised == [None, None, None, None, None, alarm, None]
    assert guard.alarm == alarm
    assert guard.best == checks[2]
    assert alarm.to_dict() == {"step": 5, "reason": "held_out_falls", "best_step": 2, "words": alarm.words}


def test_one_good_check_begins_the_count_anew():
    held_out = [3.0, 1.0, 1.0, 3.5, 1.0, 1.0]

    guard = watched([even(step, step, value) for step, value in enumerate(held_out)])

    assert guard.alarm is None
    assert guard.best.step == 3


def test_both_rewards_falling_raise_no_alarm():
    # nothing is exploited: training goes wrong, which both curves show
    assert watched([even(step, -step, -step) for step in range(20)]).alarm is None


def test_spread_beyond_the_training_responses_raises_an_alarm():
    spreads = [1.0, 1.5, 2.6, 2.4, 2.6, 2.7, 3.0]
    checks = [even(step, step, step, spread) for step, spread in enumerate(spreads)]

    guard = watched(checks, spread_limit=2.5)

    assert guard.best == checks[3]  # of those that rise on beyond the limit nobody knows whether they are better
    assert guard.alarm == Alarm(
        6,
        SPREAD,
        3,
        "The held-out rewards disagree about the policy's responses 3 times as much as about the training responses, "
        "and more than 2.5 times at 3 checks in a row.",
    )


def test_best_is_the_first_where_the_spread_is_always_too_large():
    checks = [even(step, step, step, spread) for step, spread in enumerate([1.0, 3.0, 3.0])]

    assert watched(checks, spread_limit=2.0).best == checks[0]


def test_check_that_lost_the_scores_of_hard_prompts_is_no_better_for_it():
    scored: list[list[float | None]] = [[5, 5, -5, -5], [4, 4, None, None], [5.5, 5.5, -4, -4]]
    checks = [check(step, step, held_out) for step, held_out in enumerate(scored)]

    assert [watched(checks[: number + 1]).best.step for number in range(3)] == [0, 0, 2]


def test_proxy_that_lost_the_scores_of_hard_prompts_has_not_risen():
    def proxy_scored(one: Check, rewards: list[float | None]) -> Check:
        return replace(one, reward_by_prompt=tuple(rewards))

    falling = [check(step, 1.0, [3.0 - step] * 4) for step in range(6)]
    lost = [proxy_scored(falling[0], [5, 5, -5, -5]), *(proxy_scored(one, [4, 4, None, None]) for one in falling[1:])]
    risen = [proxy_scored(falling[0], [5, 5, -5, -5]), *(proxy_scored(one, [6, 6, None, None]) for one in falling[1:])]

    assert watched(lost).alarm is None
    assert (watched(risen).alarm or falling[0]).step == 3


def test_policy_that_begins_with_a_larger_spread_has_a_larger_limit():
    checks = [even(step, step, step, spread) for step, spread in enumerate([2.0, 4.9, 4.9, 4.9, 5.1, 5.1, 5.1])]

    guard = watched(checks, spread_limit=2.5)

    assert guard.limit() == 5.0
    assert guard.alarm is not None
    assert guard.alarm.step == 6


def test_spread_that_is_not_known_raises_no_alarm():
    assert watched([even(step, step, step) for step in range(9)], spread_limit=1.0).alarm is None


def test_guard_that_is_off_only_keeps_the_best():
    checks = [even(step, step, -step, spread=9.0) for step in range(9)]

    guard = watched(checks, mode="off", spread_limit=2.0)

    assert (guard.alarm, guard.best.step) == (None, 0)


def test_replayed_from_its_file_it_decides_the_same():
    checks = world(BEST_OF_N, seed=1)
    guard = watched(checks)
    lines = [json.dumps(one.to_dict()) for one in checks]

    read = [Check.from_dict(json.loads(line)) for line in lines]

    assert read == checks
    assert watched(read).alarm == guard.alarm
    assert guard.alarm is not None


def test_reading_a_check_leaves_out_what_a_later_version_adds():
    told = even(3, 1.0, 2.0).to_dict() | {"taste": 7}

    assert Check.from_dict(told) == even(3, 1.0, 2.0)


def test_there_is_no_best_check_before_the_first():
    with pytest.raises(LookupError):
        Guard(3, "stop").best  # noqa: B018 -- raises


def test_held_out_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="held_out: nan at step 4"):
        Guard(3, "stop").see(even(4, 1.0, math.nan))


def test_lead_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, Student's 97.5 % quantile at 2 degrees of freedom 4.302653
    assert lead([1.0, 5.0, 4.0], [0.0, 3.0, 1.0]) == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    # of ten that were compared: the 99.75 % quantile, 14.08905
    assert lead([1.0, 5.0, 4.0], [0.0, 3.0, 1.0], 10) == pytest.approx(2 - 14.08905 / 3**0.5, abs=1e-5)


def test_lead_counts_prompts_that_have_both():
    assert lead([1.0, None, 5.0, 4.0], [0.0, 9.0, 3.0, 1.0]) == lead([1.0, 5.0, 4.0], [0.0, 3.0, 1.0])
    assert lead([1.0, None], [0.0, 1.0]) == -math.inf
    with pytest.raises(ValueError, match="zip"):
        lead([1.0], [1.0, 2.0])


def test_mean_interval_of_few_values():
    assert mean_interval([3.0]) == (3.0, None)
    assert math.isnan(mean_interval([])[0])


@pytest.mark.parametrize("gold", [BEST_OF_N, RL], ids=["best of n", "RL"])
def test_stops_near_the_peak_of_over_optimisation(gold):
    # measured: 100 % of worlds keep at least 90 % of the peak, with twice the noise 90 and 98 %
    guards = [watched(world(gold, seed)) for seed in range(200)]

    kept = np.array([gold[guard.best.step] for guard in guards]) / gold.max()

    assert all(guard.alarm and guard.alarm.reason == HELD_OUT_FALLS for guard in guards)
    assert np.mean(kept >= 0.9) >= 0.95


def test_never_stops_a_policy_that_gets_better():
    assert [seed for seed in range(300) if watched(world(RISING, seed)).alarm] == []


def test_seldom_stops_a_policy_that_stays_as_it_is():
    # the hardest case: all differences are noise, and the best check is the highest of up to forty
    flat = np.zeros(NUM_CHECKS)

    num_alarms = sum(watched(world(flat, seed)).alarm is not None for seed in range(400))

    assert num_alarms / 400 <= 0.02


def test_drift_of_the_reward_alone_raises_nothing():
    # the held-out reward does not move at all, however far the other one gets
    values = np.random.default_rng(0).normal(0, 1, NUM_PROMPTS).tolist()

    assert watched([check(step, 10.0 * step, values) for step in range(100)]).alarm is None


@pytest.mark.parametrize("fit", [fit_best_of_n, fit_rl])
def test_fit_recovers_a_simulated_curve(fit):
    rng = np.random.default_rng(3)
    d = np.sqrt(np.linspace(0, 40, 30))
    bend = d if fit is fit_best_of_n else np.log(np.maximum(d, 1e-9))
    gold = d * (1.2 - 0.3 * bend) + rng.normal(0, 0.02, len(d))

    alpha, beta = fit(d, gold)

    assert alpha == pytest.approx(1.2, rel=0.05)
    assert beta == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("d", "gold", "message"),
    [
        ([1.0, 2.0], [1.0], "one shape"),
        ([[1.0]], [[1.0]], "one shape"),
        ([-1.0, 2.0], [1.0, 1.0], "negative"),
        ([1.0, 2.0], [1.0, math.nan], "one is no number"),
        ([1.0, math.inf], [1.0, 1.0], "one is no number"),
        ([0.0, 2.0], [0.0, 1.0], "2 points tell no curve"),
    ],
)
def test_fit_refuses(d, gold, message):
    with pytest.raises(ValueError, match=message):
        fit_best_of_n(d, gold)


class VoteWorld:
    """Best of n by a reward learned from noisy votes, in a world with rare features that do harm.

    A response has 12 common features and, seldom, one of 40 rare ones, all of which are bad. From 800 votes, a quarter
    of which are the wrong way round, a reward learns most weights well and a few of the rare ones' signs wrongly; the
    best of many responses are those that show just these. Validators learn from 800 votes of their own, or from
    samples of the same ones.
    """

    COMMON, RARE, VOTES, PROMPTS, POOL = 12, 40, 800, 32, 4096

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = np.concatenate([self.rng.normal(0, 0.25, self.COMMON), np.full(self.RARE, -1.0)])
        own, others = self.votes(), self.votes()
        x = self.features(self.PROMPTS, self.POOL)
        order = np.argsort(x @ self.learn(own), axis=1)
        place = np.arange(1, self.POOL + 1) / self.POOL
        kept = np.array([place**n - (place - 1 / self.POOL) ** n for n in 2 ** np.arange(13)])

        def best_of_n(weights: np.ndarray) -> np.ndarray:
            """(13, 32) of each n and prompt: the mean reward by these weights of what the proxy selects."""
            return kept @ np.take_along_axis(x @ weights, order, axis=1).T

        self.gold = best_of_n(self.truth).mean(1) - (x @ self.truth).mean()
        self.proxy = best_of_n(self.learn(own)).mean(1)
        self.validators = {
            name: best_of_n(np.mean([self.learn(self.redrawn(votes)) for _ in range(3)], axis=0))
            for name, votes in (("disjoint", others), ("shared", own))
        }

    def features(self, *shape: int) -> np.ndarray:
        rare = 3.0 * (self.rng.random((*shape, self.RARE)) < 0.003)
        return np.concatenate([self.rng.normal(0, 1, (*shape, self.COMMON)), rare], axis=-1)

    def votes(self) -> np.ndarray:
        """(800, 52) features of the better response less those of the worse, as the votes have it."""
        difference = self.features(self.VOTES) - self.features(self.VOTES)
        is_first = self.rng.random(self.VOTES) < 1 / (1 + np.exp(-difference @ self.truth))
        is_flipped = self.rng.random(self.VOTES) < 0.25
        return difference * np.where(is_first ^ is_flipped, 1, -1)[:, None]

    def redrawn(self, votes: np.ndarray) -> np.ndarray:
        return votes[self.rng.integers(0, len(votes), len(votes))]

    def learn(self, votes: np.ndarray) -> np.ndarray:
        """The weights of Bradley-Terry, by Newton's method with a slight ridge."""
        weights = np.zeros(votes.shape[1])
        for _ in range(15):
            p = 1 / (1 + np.exp(votes @ weights))
            curvature = (votes * (p * (1 - p))[:, None]).T @ votes + 0.3 * np.eye(len(weights))
            weights += np.linalg.solve(curvature, votes.T @ p - 0.3 * weights)
        return weights

    def watched(self, name: str) -> tuple[Guard, float]:
        """A guard that sees n = 1, 2, 4, …, and the true reward at its best check as a share of the highest."""
        values = self.validators[name]
        checks = [check(step, float(self.proxy[step]), row.tolist()) for step, row in enumerate(values)]
        guard = Guard(patience=3, mode="alarm")
        for one in checks:
            guard.see(one)
        return guard, self.gold[guard.best.step] / self.gold.max()


@pytest.mark.slow  # five seconds
def test_validators_on_votes_of_their_own_find_the_peak_and_those_that_share_votes_do_not():
    # measured: the best check is within 5 % of the peak in 62 and 4 % of worlds, and there is an alarm in 71 and 0 %,
    # where the fall begins early enough; the best of 4,096 are worse than responses are on average, by more than the
    # peak was better
    worlds = [VoteWorld(seed) for seed in range(24)]

    found = {name: [world.watched(name) for world in worlds] for name in ("disjoint", "shared")}

    near = {name: np.mean([kept >= 0.95 for _, kept in own]) for name, own in found.items()}
    alarms = {name: np.mean([guard.alarm is not None for guard, _ in own]) for name, own in found.items()}
    assert near["disjoint"] >= 0.55
    assert near["shared"] <= 0.1
    assert alarms["disjoint"] >= 0.6
    assert alarms["shared"] <= 0.1
    assert np.mean([world.gold[-1] for world in worlds]) < -1
