"""What each member of an ensemble deserves to weigh, by how likely it makes judgments that it was not trained on.

**Bayesian model averaging** takes one of the members for the truth and asks which: a member's weight is its prior times
the likelihood that it gives the judgments. Members differ by some nats a hundred judgments, so the weight goes to one
of them soon, and exponentially fast, also where all are wrong and a mixture of them would be better: it does not find
the best combination, it selects (T. Minka, "Bayesian model averaging is not model combination", 2002).
`describe_collapse` says so, and what it costs.

**Stacking** asks for the combination itself: the weights with which the combined reward makes the judgments likeliest.
**Pseudo-BMA+** stands between: it averages the weights over resampled judgments, so that it goes to one member only as
far as the prompts at hand can tell that it is the best.

Weights are used in two ways. The mixture of the members' probabilities is what Bayes' rule predicts of a judgment, and
is no function of a single response. The mean of their rewards, each in nats, is a score of a single response, and where
weights have gone to one member both are that member.

All need judgments on prompts that no member was trained on: where a member has seen the answers, it wins.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import nnls
from scipy.special import entr, expit, log_expit, logsumexp

from training.alignment import member_checks
from training.alignment.ensemble import (
    NEGLIGIBLE,
    Bools,
    Floats,
    Ints,
    JudgedScores,
    log_likelihood,
    mean,
    weighted_mean,
)
from training.alignment.losses import num_choices, plackett_luce_loss

ALIKE = 0.9999  # correlation within prompts from which on two members are copies of each other
SMALLEST = 1e-9  # share that a member keeps, so that it speaks where those that weigh more are missing
COLLAPSED = 1.2  # effective number of members
PULLS = (1000.0, 100.0, 10.0, 1.0, 0.1)
NUM_FOLDS = 5
NUM_DRAWS = 1000
MAX_STEPS = 100
FLAT = 1e-8  # nats in a unit of weight

Objective = Callable[[Floats], tuple[float, Floats, Floats]]
"""(M,) -> a loss, its gradient (M,) and its curvature (M, M)."""


# Bayesian model averaging


def log_likelihoods(judged: JudgedScores, temperatures: ArrayLike) -> Floats:
    """(B, M) log-probability of each judgment by each member, in nats of the whole ranking, times its weight.

    It is nan where a member has no score for a response that was ranked.

    Args:
        temperatures: (M,) what divides a member's scores to make them nats; see `member_checks.temperatures`.

    Raises:
        ValueError: there are not M temperatures, or one is not above zero.
    """
    own = _positive(temperatures, judged.num_members)
    found = [log_likelihood(judged.scores[..., m] / own[m], judged, is_per_choice=False) for m in range(len(own))]
    is_missing = (np.isnan(judged.scores) & (judged.groups >= 0)[..., None]).any(1)
    return np.where(is_missing, np.nan, np.stack(found, axis=1) * judged.weights[:, None])


def shared_prior(judged: JudgedScores) -> Floats:
    """(M,) prior probabilities: members that differ have equal ones, and copies of one member share its.

    With a prior that is the same for all, a second copy of a member would double what it counts for, and change every
    prediction. Copies are those whose scores correlate by 0.9999 within prompts.

    Source: E. I. George, "Dilution priors: compensating for model space redundancy", 2010.
    """
    differences = judged.ordered_pairs().margins
    num_members = judged.num_members
    is_copy = np.eye(num_members, dtype=bool)
    for first in range(num_members):
        for second in range(first):
            is_copy[first, second] = is_copy[second, first] = _are_copies(differences[:, [first, second]])
    copies = is_copy.sum(1)
    return (1 / copies) / (1 / copies).sum()


def log_posterior(log_likelihoods: ArrayLike, log_prior: ArrayLike) -> Floats:
    """(M,) logarithms of the posterior weights, normalised: log prior and log-likelihoods of all judgments, summed.

    That is exact, so judgments may come in parts, each with the last one's result as its prior. A member that misses
    some responses of a judgment is taken at the mean of those that do not: what it misses counts neither for it nor
    against it.

    Args:
        log_likelihoods: (B, M) as `log_likelihoods` gives them; without judgments, the prior results.
        log_prior: (M,) need not be normalised.

    Raises:
        ValueError: shapes differ.
    """
    told, prior = _told(log_likelihoods), np.asarray(log_prior, dtype=np.float64)
    if prior.shape != told.shape[1:]:
        raise ValueError(f"log_prior {prior.shape} must be (M,) for log_likelihoods {told.shape}")
    usual = np.nan_to_num(mean(told))[:, None] if len(told) else 0.0
    evidence = prior + np.where(np.isnan(told), usual, told).sum(0)
    return evidence - logsumexp(evidence)


def posterior(log_likelihoods: ArrayLike, log_prior: ArrayLike) -> Floats:
    """(M,) posterior weights, which sum to one; arguments and errors are those of `log_posterior`."""
    return np.exp(log_posterior(log_likelihoods, log_prior))


def posterior_of(judged: JudgedScores, temperatures: ArrayLike) -> Floats:
    """(M,) posterior weights of members under `shared_prior`, none below a billionth.

    So a response that those who weigh have not scored gets its score of the others.
    """
    found = posterior(log_likelihoods(judged, temperatures), np.log(shared_prior(judged)))
    return _none_nothing(found)


def mixture(log_likelihoods: ArrayLike, weights: ArrayLike) -> Floats:
    """(B,) log-probability of each judgment by the mixture of members, those that miss it left out.

    Args:
        log_likelihoods: (B, M) of unweighted judgments.
        weights: (M,) not negative.

    Raises:
        ValueError: shapes differ, or a weight is negative.
    """
    told, shares = _told(log_likelihoods), np.asarray(weights, dtype=np.float64)
    if shares.shape != told.shape[1:] or not (shares >= 0).all():
        raise ValueError(f"weights {shares.shape} must be (M,) for log_likelihoods {told.shape}, and none negative")
    own = np.where(np.isnan(told), 0.0, shares)
    with np.errstate(divide="ignore", invalid="ignore"):  # nan where nobody who weighs has it
        found: Floats = logsumexp(np.nan_to_num(told), b=own, axis=1) - np.log(own.sum(1))
    return found


def preference(margins: ArrayLike, weights: ArrayLike, temperatures: ArrayLike) -> Floats:
    """(..., M) -> (...,) probability that the first of two responses is preferred: sum of w sigmoid(margin / T).

    Args:
        margins: each member's score of the first less that of the second.
        weights, temperatures: (M,).
    """
    given = np.asarray(margins, dtype=np.float64)
    return weighted_mean(expit(given / _positive(temperatures, given.shape[-1])), weights)


def averaged_reward(scores: ArrayLike, weights: ArrayLike, temperatures: ArrayLike) -> Floats:
    """(..., M) -> (...,) the reward in nats of a response by itself: sum of w score / T. Arguments as in `preference`.

    Its sigmoid is not the mixture's probability: of 0.99 and 0.5, equally weighted, it makes 0.91, the mixture 0.745.
    """
    given = np.asarray(scores, dtype=np.float64)
    return weighted_mean(given / _positive(temperatures, given.shape[-1]), weights)


def pseudo_bma_plus(
    log_likelihoods: ArrayLike, prompts: Ints, rng: np.random.Generator, *, num_draws: int = NUM_DRAWS
) -> Floats:
    """(M,) posterior weights under a flat prior, averaged over the Bayesian bootstrap of prompts.

    Args:
        log_likelihoods: (B, M); what a member misses is taken as in `log_posterior`.
        prompts: (B,) the number of each judgment's prompt.

    Source: Y. Yao, A. Vehtari, D. Simpson and A. Gelman, "Using stacking to average Bayesian predictive
    distributions", Bayesian Analysis 13(3), 2018, section 3.4.
    """
    told = _told(log_likelihoods)
    if not len(told):
        return np.full(told.shape[1], 1 / told.shape[1])
    filled = np.where(np.isnan(told), np.nan_to_num(mean(told))[:, None], told)
    distinct, places = np.unique(prompts, return_inverse=True)
    by_prompt = np.stack([np.bincount(places, column, len(distinct)) for column in filled.T], axis=1)
    drawn = len(distinct) * rng.dirichlet(np.ones(len(distinct)), size=num_draws) @ by_prompt
    found: Floats = np.exp(drawn - logsumexp(drawn, axis=1, keepdims=True)).mean(0)
    return found


# Stacking


def stacking_weights(judged: JudgedScores, *, pull: float | None = None, seed: int = 0) -> Floats:
    """(M,) weights, none negative, with which the sum of weight times score makes the judgments likeliest.

    They are log-odds in a unit of each member's score, so the sum is a reward in nats; their shares are what
    `weighted_mean` takes. The likelihood is Plackett-Luce's, each ranking having one voice, which is concave in the
    weights: there is one optimum, and members that add nothing get next to nothing (a billionth, to speak where all
    others are missing). What a member misses is taken at the mean of the others, so scores should be standardised.

    With few judgments weights stay near those of the mean, at its best temperature: `pull` / 2 times their squared
    distance from these is a loss in nats, where a unit of weight is one by a margin of the usual size.

    Args:
        pull: nothing for the one of `PULLS` that predicts the judgments on left-out prompts best, in five folds.
        seed: of the folds.

    Raises:
        ValueError: `pull` is negative.
        RuntimeError: it did not converge.

    Source: D. Wolpert, "Stacked generalization", 1992, with L. Breiman's weights that are not negative, 1996.
    """
    if pull is None:
        pull = _best_pull(judged, np.random.default_rng(seed))
    if pull < 0:
        raise ValueError(f"pull {pull} must not be negative")
    (weights,) = _stacked(judged, [pull])
    return weights.sum() * _none_nothing(weights / weights.sum())


def _best_pull(judged: JudgedScores, rng: np.random.Generator) -> float:
    num_folds = min(NUM_FOLDS, len(np.unique(judged.prompts)))
    if num_folds < 2:
        return max(PULLS)
    losses = np.zeros(len(PULLS))
    for is_held_out in _folds(judged.prompts, num_folds, rng):
        fitted, held_out = judged.select(~is_held_out), judged.select(is_held_out)
        for place, weights in enumerate(_stacked(fitted, PULLS)):
            losses[place] -= held_out.weights @ log_likelihood(_summed(held_out.scores, weights), held_out)
    return PULLS[int(np.argmin(losses))]


def _stacked(judged: JudgedScores, pulls: Sequence[float]) -> list[Floats]:
    """(M,) weights for each pull, each found from the one before."""
    usual = np.nan_to_num(mean(judged.scores))[..., None]
    judged = replace(judged, scores=np.where(np.isnan(judged.scores), usual, judged.scores))
    size = _usual_margin(judged)
    judged = replace(judged, scores=judged.scores / size)
    centre = _weights_of_mean(judged)
    found = [centre]
    for pull in pulls:
        weights = _lowest(_stacking_objective(judged, centre, pull), found[-1])
        found.append(weights if weights.any() else centre)
    return [weights / size for weights in found[1:]]


def _lowest(objective: Objective, start: Floats) -> Floats:
    """(M,) where a convex objective is lowest, none negative: Newton's method, each step by non-negative least squares.

    Near-copies among members make the problem too ill-conditioned for L-BFGS-B, which stops on the way.
    """
    weights, (loss, gradient, curvature) = start, objective(start)
    for _ in range(MAX_STEPS):
        if np.abs(weights - np.maximum(weights - gradient, 0)).max() < FLAT:
            return weights
        ridge = NEGLIGIBLE * max(np.trace(curvature), NEGLIGIBLE) * np.eye(len(weights))
        root = np.linalg.cholesky(curvature + ridge)
        step = nnls(root.T, root.T @ weights - np.linalg.solve(root, gradient))[0] - weights
        size = 1.0
        while (found := objective(weights + size * step))[0] > loss + size * (
            gradient @ step
        ) / 10 and size > NEGLIGIBLE:
            size /= 2
        weights, (loss, gradient, curvature) = weights + size * step, found
    raise RuntimeError(f"stacking weights did not converge in {MAX_STEPS} steps")


def _usual_margin(judged: JudgedScores) -> float:
    """The root of the mean squared margin of all members, over ordered pairs; 1 where there is none."""
    margins = judged.ordered_pairs().margins
    return float(np.sqrt(np.mean(margins**2))) if margins.any() else 1.0


def _stacking_objective(judged: JudgedScores, centre: Floats, pull: float) -> Objective:
    """The loss of weights (M,) in nats, of a judgment or of as much pull, and its derivatives; no score is missing."""
    margins, rankings, counts = judged.ordered_pairs()
    num_pairs = np.bincount(rankings, minlength=len(judged))
    is_single = num_pairs[rankings] == 1
    margins, counts = margins[is_single], counts[is_single]
    of_lists = _loss_of_lists(judged.select(num_pairs > 1)) if (num_pairs > 1).any() else None
    total = max(float(judged.weights.sum()), 1.0) + pull  # so that gradient and curvature are of about one size

    def objective(weights: Floats) -> tuple[float, Floats, Floats]:
        leads = margins @ weights  # of pairs, Plackett-Luce is Bradley-Terry, and is had in a hundredth of the time
        wrong = expit(-leads)
        loss = pull / 2 * ((weights - centre) ** 2).sum() - counts @ log_expit(leads)
        gradient = pull * (weights - centre) - (counts * wrong) @ margins
        curvature = pull * np.eye(len(weights)) + (margins.T * (counts * wrong * (1 - wrong))) @ margins
        if of_lists is not None:
            loss, gradient, curvature = (
                a + b for a, b in zip((loss, gradient, curvature), of_lists(weights), strict=True)
            )
        return float(loss / total), gradient / total, curvature / total

    return objective


def _loss_of_lists(judged: JudgedScores) -> Objective:
    """The loss of weights (M,) over rankings of any kind, each having one voice times its weight, and derivatives."""
    groups = torch.from_numpy(np.asarray(judged.groups, dtype=np.int64))
    counts = torch.from_numpy(judged.weights) / num_choices(groups)
    scores = torch.from_numpy(judged.scores)

    def objective(values: Floats) -> tuple[float, Floats, Floats]:
        weights = torch.tensor(values, requires_grad=True)
        loss = counts @ plackett_luce_loss(scores @ weights, groups)
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        rows = [torch.autograd.grad(slope, weights, retain_graph=True)[0] for slope in gradient]
        return loss.item(), gradient.detach().numpy(), torch.stack(rows).numpy()

    return objective


def _weights_of_mean(judged: JudgedScores) -> Floats:
    """(M,) equal weights, with which the sum is the mean at the temperature of the highest likelihood."""
    num_members = judged.num_members
    alone = JudgedScores(mean(judged.scores)[..., None], judged.groups, judged.prompts, judged.weights)
    return np.full(num_members, 1 / (num_members * member_checks.temperatures(alone)[0]))


# What collapsing costs


def effective_number(weights: ArrayLike) -> float:
    """As many equally weighted members would have the same entropy as these, (M,) weights not negative."""
    given = np.asarray(weights, dtype=np.float64)
    shares = given / given.sum()
    return float(np.exp(entr(shares).sum()))


def describe_collapse(weights: ArrayLike, loss: float, stacking_loss: float) -> str | None:
    """What to say where weights (M,) have gone to one member; nothing where they have not.

    Args:
        loss, stacking_loss: log-losses with these weights, and with stacking's, on held-out judgments, in nats.
    """
    given = np.asarray(weights, dtype=np.float64)
    number = effective_number(given)
    if len(given) < 2 or number >= COLLAPSED:
        return None
    said = (
        f"Nearly all weight went to one member: the {len(given)} count for {number:.2f}. "
        "Averaging by posterior weights selects as judgments grow, and does not combine."
    )
    cost = loss - stacking_loss
    if not np.isfinite(cost):
        return said
    against = f"costs {cost:.3f} nats" if cost >= 0 else f"gains {-cost:.3f} nats"
    return f"{said} On held-out judgments this {against} a judgment against stacking."


def held_out_losses(judged: JudgedScores, rng: np.random.Generator, *, num_folds: int = 5) -> dict[str, Floats]:
    """(B,) log-loss of each judgment, in nats per choice, by each method fitted on the other folds of prompts.

    The methods are bayesian_average, in its form as a reward, pseudo_bma_plus in the same, stacking, and mean at its
    best temperature.

    Raises:
        ValueError: there are fewer prompts than folds, or fewer than two folds.
    """
    num_prompts = len(np.unique(judged.prompts))
    if not 2 <= num_folds <= num_prompts:
        raise ValueError(f"num_folds {num_folds} must be at least 2, and at most the {num_prompts} prompts")
    found: dict[str, Floats] = defaultdict(lambda: np.empty(len(judged)))
    for is_held_out in _folds(judged.prompts, num_folds, rng):
        held_out = judged.select(is_held_out)
        for name, log_odds in _fitted(judged.select(~is_held_out), rng).items():
            found[name][is_held_out] = -log_likelihood(_summed(held_out.scores, log_odds), held_out)
    return dict(found)


def _fitted(judged: JudgedScores, rng: np.random.Generator) -> dict[str, Floats]:
    """(M,) log-odds in a unit of each member's score, by each method."""
    own = member_checks.temperatures(judged)
    told = log_likelihoods(judged, own)
    return {
        "bayesian_average": posterior_of(judged, own) / own,
        "pseudo_bma_plus": _none_nothing(pseudo_bma_plus(told, judged.prompts, rng)) / own,
        "stacking": stacking_weights(judged),
        "mean": _weights_of_mean(judged),
    }


def _folds(prompts: Ints, num_folds: int, rng: np.random.Generator) -> Iterator[Bools]:
    """(B,) which judgments are held out, of each fold: those on a prompt are in one."""
    distinct, places = np.unique(prompts, return_inverse=True)
    fold_of = (rng.permutation(len(distinct)) % num_folds)[places]
    for fold in range(num_folds):
        yield fold_of == fold


def _summed(scores: Floats, log_odds: Floats) -> Floats:
    """(..., M) -> (...,) rewards in nats; what is missing is made up for by the others."""
    return log_odds.sum() * weighted_mean(scores, log_odds)


def _none_nothing(shares: Floats) -> Floats:
    kept = np.maximum(shares, SMALLEST)
    return kept / kept.sum()


def _are_copies(differences: Floats) -> bool:
    """Whether two members' differences within prompts, (N, 2), are proportional, as far as both are known."""
    first, second = differences[np.isfinite(differences).all(1)].T
    size = np.sqrt((first @ first) * (second @ second))
    return bool(size > 0 and first @ second >= ALIKE * size)


def _told(log_likelihoods: ArrayLike) -> Floats:
    told = np.asarray(log_likelihoods, dtype=np.float64)
    if told.ndim != 2 or not told.shape[1]:
        raise ValueError(f"log_likelihoods {told.shape} must be (B, M), M > 0")
    return told


def _positive(temperatures: ArrayLike, num_members: int) -> Floats:
    own = np.asarray(temperatures, dtype=np.float64)
    if own.shape != (num_members,) or not (np.isfinite(own) & (own > 0)).all():
        raise ValueError(f"temperatures {own.shape} must be ({num_members},), finite and above zero")
    return own
