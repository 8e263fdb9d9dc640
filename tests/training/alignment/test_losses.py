import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from training.alignment.losses import (
    Judged,
    Likelihood,
    all_pairs_loss,
    bradley_terry_loss,
    davidson,
    davidson_loss,
    num_choices,
    plackett_luce_loss,
    ranking_loss,
    rao_kupper,
)
from training.alignment.measures import spearman


def loss_of(rewards: list[float], groups: list[int]) -> float:
    return plackett_luce_loss(torch.tensor([rewards], dtype=torch.float64), torch.tensor([groups])).item()


def by_orders(rewards: list[float], groups: list[int]) -> float:
    """The definition: the probabilities of all strict orders that the tied groups allow, summed."""
    total = 0.0
    for order in itertools.permutations(range(len(rewards))):
        if [groups[place] for place in order] == sorted(groups):
            weights = [math.exp(rewards[place]) for place in order]
            total += math.prod(weight / sum(weights[start:]) for start, weight in enumerate(weights))
    return -math.log(total)


def random_batch(num_rows: int, num_responses: int, num_groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(num_rows, num_responses, generator=generator, dtype=torch.float64)
    return rewards, torch.randint(-1, num_groups, (num_rows, num_responses), generator=generator)


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def orders(num_responses: int) -> list[list[int]]:
    """All rankings of so many responses, ties included, as the groups of each."""
    numbered = itertools.product(range(num_responses), repeat=num_responses)
    return [list(groups) for groups in numbered if set(groups) == set(range(max(groups) + 1))]


def minimised(loss: Callable[[], Tensor], *parameters: Tensor) -> None:
    """Bring the parameters to where the loss is smallest."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(
        parameters, line_search_fn="strong_wolfe", max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def optimum(loss: Callable[[Tensor], Tensor]) -> float:
    """The margin of the smallest loss."""
    margin = torch.zeros(1, dtype=torch.float64)
    minimised(lambda: loss(margin).sum(), margin)
    return margin.item()


def fitted(likelihood: Likelihood, shown: Tensor, judged: Judged, votes: Tensor) -> Tensor:
    """Strengths of mean zero that make the votes most likely: `shown` (B, K) are items, each judged `votes` times."""
    strengths = torch.zeros(int(shown.max()) + 1, dtype=torch.float64)
    likelihood.double()
    minimised(
        lambda: (likelihood(strengths[shown], judged) * votes).sum() / votes.sum(), strengths, *likelihood.parameters()
    )
    return (strengths - strengths.mean()).detach()


def slope(found: Tensor, truth: Tensor) -> float:
    """Of what was found against the truth."""
    return ((found * truth).sum() / (truth * truth).sum()).item()


def all_pairs_of(num_items: int) -> Tensor:
    return torch.combinations(torch.arange(num_items))


def drawn_votes(log_probabilities: Tensor, num_votes: int, generator: torch.Generator) -> Tensor:
    """(..., P, 3) how often each outcome of each of P pairs came, of votes spread evenly over the pairs."""
    each = num_votes // log_probabilities.shape[-2]
    drawn = torch.multinomial(log_probabilities.exp().reshape(-1, 3), each, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(drawn, 3).sum(1).reshape(log_probabilities.shape).double()


def normal_strengths(num_items: int, spread: float, generator: torch.Generator) -> Tensor:
    strengths = torch.randn(num_items, generator=generator, dtype=torch.float64)
    return spread * (strengths - strengths.mean()) / strengths.std()


@pytest.mark.parametrize("margin", [-3.0, 0.0, 0.5, 40.0])
def test_a_strict_pair_is_bradley_terry(margin):
    assert loss_of([margin, 0], [0, 1]) == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-12)
    assert loss_of([0, margin], [1, 0]) == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-12)


def test_a_pair_of_equal_rewards_costs_ln_2_and_pulls_by_a_half():
    rewards = torch.zeros(1, 2, requires_grad=True)

    loss = plackett_luce_loss(rewards, torch.tensor([[0, 1]]))
    loss.sum().backward()

    assert loss.tolist() == pytest.approx([0.693147], abs=1e-6)
    assert rewards.grad.tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize(("num_responses", "expected"), [(2, 0.693147), (4, 3.178054), (9, 12.801827)])
def test_equal_rewards_in_strict_order_cost_ln_k_factorial(num_responses, expected):
    assert loss_of([7.0] * num_responses, list(range(num_responses))) == pytest.approx(expected, abs=1e-6)


def test_a_list_worked_by_hand():
    # weights 1, 2, 3 in the order 3, 1, 2: 3/6 · 1/3 · 1 = 1/6
    assert loss_of([math.log(1), math.log(2), math.log(3)], [1, 2, 0]) == pytest.approx(math.log(6), abs=1e-12)
    # {1, 2} tied before 3: 1/6 · 2/5 + 2/6 · 1/4 = 3/20
    assert loss_of([math.log(1), math.log(2), math.log(3)], [0, 0, 1]) == pytest.approx(-math.log(3 / 20), abs=1e-12)
    # 3 first, {1, 2} tied after it: 3/6
    assert loss_of([math.log(1), math.log(2), math.log(3)], [1, 1, 0]) == pytest.approx(math.log(2), abs=1e-12)


def test_the_probabilities_of_all_orders_sum_to_one():
    rewards = [0.3, -1.0, 2.0, 0.0]

    total = sum(math.exp(-loss_of(rewards, list(order))) for order in itertools.permutations(range(4)))

    assert total == pytest.approx(1, abs=1e-12)


def test_the_probability_that_one_comes_before_another_is_that_of_the_pair_alone():
    rewards = [1.0, -1.0, 0.4, 2.0]

    before = [order for order in itertools.permutations(range(4)) if order[0] < order[1]]

    assert sum(math.exp(-loss_of(rewards, list(order))) for order in before) == pytest.approx(0.880797, abs=1e-6)


def test_only_the_best_known_is_softmax_cross_entropy():
    rewards = torch.tensor([[0.5, -1.0, 2.0, 0.1]])

    loss = plackett_luce_loss(rewards, torch.tensor([[1, 1, 0, 1]]))

    assert loss.tolist() == pytest.approx([torch.nn.functional.cross_entropy(rewards, torch.tensor([2])).item()])


@pytest.mark.parametrize(
    "groups", [[0, 0, 1, 2, 2, 2], [1, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 0, 1], [2, 2, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]]
)
def test_ties_are_the_sum_over_all_their_orders(groups):
    rewards = [0.3, -1.2, 2.5, 0.0, 0.9, -0.4, 1.7][: len(groups)]

    assert loss_of(rewards, groups) == pytest.approx(by_orders(rewards, groups), abs=1e-12)


def by_clocks(tied: list[float], below: float) -> float:
    """The same by another road: each response rings after a time drawn from Exp(weight), and the tied ring first.

    With u the chance that nothing below has rung, that is the integral of the product of 1 - u^(weight / those below).
    """
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    return -math.log(torch.stack([1 - u ** math.exp(reward - below) for reward in tied]).prod(0).mean())


def test_ties_up_to_ten_are_exact_and_larger_ones_approximate():
    rewards = [0.3, -0.2, 0.5, 0.0, 0.2, -0.4, 0.1, -0.1, 0.6, -0.3, 0.4, 0.2]

    assert loss_of([*rewards[:10], -1.0], [0] * 10 + [1]) == pytest.approx(by_clocks(rewards[:10], -1.0), abs=1e-6)
    assert by_clocks(rewards, -1.0) < loss_of([*rewards, -1.0], [0] * 12 + [1]) < 1.5 * by_clocks(rewards, -1.0)
    assert loss_of([1.0] * 13, [0] * 12 + [1]) == pytest.approx(math.log(13), abs=1e-12)  # last of 13, by chance


@pytest.mark.parametrize("num_responses", [2, 6, 12])
def test_a_list_where_everything_ties_costs_nothing_and_teaches_nothing(num_responses):
    rewards = torch.randn(1, num_responses, requires_grad=True)

    loss = plackett_luce_loss(rewards, torch.zeros(1, num_responses, dtype=torch.int64))
    loss.sum().backward()

    assert loss.tolist() == [0.0]
    assert rewards.grad.tolist() == [[0.0] * num_responses]


def test_padding_and_unranked_responses_do_not_count_whatever_they_hold():
    rewards = torch.tensor([[1.0, math.nan, 0.0, 99.0]], requires_grad=True)

    loss = plackett_luce_loss(rewards, torch.tensor([[1, -1, 0, -1]]))
    loss.sum().backward()

    assert loss.tolist() == pytest.approx([math.log1p(math.exp(1))])
    assert rewards.grad.tolist() == [pytest.approx([0.731059, 0, -0.731059, 0], abs=1e-6)]
    assert plackett_luce_loss(rewards, torch.full((1, 4), -1)).tolist() == [0.0]


def test_a_constant_added_to_all_rewards_of_a_prompt_changes_nothing():
    rewards, groups = random_batch(50, 9, 4)
    shift = torch.linspace(-100, 100, 50, dtype=torch.float64)[:, None]

    difference = plackett_luce_loss(rewards + shift, groups) - plackett_luce_loss(rewards, groups)

    assert difference.abs().max().item() < 1e-12


def test_the_order_in_which_responses_are_listed_changes_nothing():
    rewards, groups = random_batch(50, 9, 4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))

    difference = plackett_luce_loss(rewards[:, order], groups[:, order]) - plackett_luce_loss(rewards, groups)

    assert difference.abs().max().item() < 1e-12


@pytest.mark.parametrize("num_groups", [2, 4, 9])
def test_the_gradient_agrees_with_finite_differences(num_groups):
    rewards, groups = random_batch(6, 9, num_groups)

    assert torch.autograd.gradcheck(lambda given: plackett_luce_loss(given, groups), rewards.requires_grad_())


@pytest.mark.parametrize("groups", [[0, 1, 2], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
@pytest.mark.parametrize("rewards", [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 1e4, -1e4]])
def test_extreme_rewards_stay_finite(rewards, groups):
    given = torch.tensor([rewards], requires_grad=True)

    loss = plackett_luce_loss(given, torch.tensor([groups]))
    loss.sum().backward()

    assert math.isfinite(loss.item())
    assert given.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    rewards = torch.tensor([[1.0, 0.9921875]], dtype=torch.bfloat16)

    loss = plackett_luce_loss(rewards, torch.tensor([[0, 1]]))

    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-0.0078125))], abs=1e-7)


def test_the_training_loss_gives_each_ranking_one_voice():
    rewards = torch.zeros(3, 4)
    groups = torch.tensor([[0, 1, -1, -1], [0, 1, 2, 3], [0, 0, 0, 0]])

    assert num_choices(groups).tolist() == [1, 3, 0]
    assert num_choices(torch.tensor([[0, 0, 1, 1], [0, 1, 1, -1], [-1, -1, -1, -1]])).tolist() == [2, 1, 0]
    assert ranking_loss(rewards, groups).tolist() == pytest.approx([math.log(2), math.log(24) / 3, 0])


def test_strengths_are_recovered_from_simulated_rankings_with_ties():
    generator = torch.Generator().manual_seed(0)
    strengths = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)
    shown = torch.stack([torch.randperm(8, generator=generator)[:5] for _ in range(4000)])
    gumbel = -torch.rand(shown.shape, generator=generator, dtype=torch.float64).log().neg().log().neg()
    place = (strengths[shown] - gumbel).argsort(1, descending=True).argsort(1)
    groups = torch.tensor([0, 1, 1, 2, 2])[place]  # the second and third tie, and the fourth and fifth
    fitted = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], line_search_fn="strong_wolfe", max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = plackett_luce_loss(fitted[shown], groups).mean()
        loss.backward()
        return loss

    optimizer.step(closure)

    found = (fitted - fitted.mean()).detach()
    assert found.tolist() == pytest.approx(strengths.tolist(), abs=0.1)


@pytest.mark.parametrize(("rewards", "groups"), [((2, 3), (2, 4)), ((3,), (3,)), ((1, 2, 3), (1, 2, 3))])
def test_shapes_are_checked(rewards, groups):
    with pytest.raises(ValueError, match=r"must both be \(B, K\)"):
        plackett_luce_loss(torch.zeros(rewards), torch.zeros(groups, dtype=torch.int64))


def test_efrons_ties_are_exact_where_the_tied_are_equal_and_close_elsewhere():
    rewards, groups = double(0.5, 0.5, 0.5, -1.0)[None], torch.tensor([[0, 0, 0, 1]])
    uneven, strict = double(0.5, 0.1, -0.4, -1.0)[None], torch.tensor([[3, 1, 0, 2]])

    def efron(rewards: Tensor, groups: Tensor) -> float:
        return plackett_luce_loss(rewards, groups, ties="efron").item()

    assert efron(rewards, groups) == pytest.approx(plackett_luce_loss(rewards, groups).item(), abs=1e-12)
    assert efron(uneven, strict) == pytest.approx(plackett_luce_loss(uneven, strict).item(), abs=1e-12)
    assert 1.1 < efron(uneven, groups) / plackett_luce_loss(uneven, groups).item() < 1.3


def test_ties_that_are_neither_exact_nor_efrons_are_refused():
    with pytest.raises(ValueError, match="ties 'breslow' is not one of exact, efron"):
        plackett_luce_loss(torch.zeros(1, 2), torch.tensor([[0, 1]]), ties="breslow")


def test_the_tray_of_the_bad_costs_nothing_inside_itself():
    rewards = double(0.3, 1.0, -2.0, 0.5)[None].requires_grad_()

    loss = plackett_luce_loss(rewards, torch.tensor([[0, 1, 1, 1]]))
    pull = torch.autograd.grad(loss.sum(), rewards)[0]

    assert loss.item() == pytest.approx(-torch.log_softmax(rewards, 1)[0, 0].item(), abs=1e-12)
    assert pull[0, 1:].tolist() == pytest.approx(torch.softmax(rewards, 1)[0, 1:].tolist(), abs=1e-12)


def test_the_first_two_of_four_are_two_choices():
    rewards = [0.3, 1.0, -2.0, 0.5]

    weights = [math.exp(reward) for reward in rewards]
    chance = weights[0] / sum(weights) * weights[1] / sum(weights[1:])

    assert loss_of(rewards, [0, 1, 2, 2]) == pytest.approx(-math.log(chance), abs=1e-12)
    assert loss_of(rewards, [0, 1, -1, -1]) == pytest.approx(
        math.log1p(math.exp(0.7)), abs=1e-12
    )  # not last: not there


# Pairs


def test_a_pairs_loss_is_that_of_bradley_and_terry():
    margins = double(-1e4, -1.0, 0.0, 1.0, 1e4).requires_grad_()

    loss = bradley_terry_loss(margins)

    assert loss.tolist() == pytest.approx([1e4, 1.3132616875, math.log(2), 0.3132616875, 0], abs=1e-9)
    assert torch.autograd.grad(loss.sum(), margins)[0].tolist() == pytest.approx(
        [-1, -0.7310585786, -0.5, -0.2689414214, 0], abs=1e-9
    )
    assert bradley_terry_loss(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("share", "margin", "expected"),
    [(0.7, 0.0, 0.847298), (0.7, 1.0, 1.43086), (0.9, 1.0, 3.09795), (0.5, 0.0, 0.0), (0.5, 1.0, 0.0), (0.5, 3.0, 0.0)],
)
def test_the_margin_at_which_a_repeated_pair_ends_is_known_in_closed_form(share, margin, expected):
    lead = (2 * share - 1) * math.exp(margin)
    closed_form = math.log((lead + math.sqrt(lead**2 + 4 * share * (1 - share))) / (2 * (1 - share)))

    assert closed_form == pytest.approx(expected, abs=1e-5)
    assert optimum(lambda margins: bradley_terry_loss(margins, margin=margin, target=share)) == pytest.approx(
        closed_form, abs=1e-5
    )


@pytest.mark.parametrize(("smoothing", "cap"), [(0.05, 2.944439), (0.10, 2.197225)])
def test_smoothing_caps_the_difference_of_a_pair_that_all_agree_on(smoothing, cap):
    likelihood = Likelihood(label_smoothing=smoothing)

    def loss(margin: Tensor) -> Tensor:
        return likelihood(torch.stack([margin, 0 * margin], 1), Judged(torch.tensor([[0, 1]])))

    assert optimum(lambda margins: bradley_terry_loss(margins, label_smoothing=smoothing)) == pytest.approx(
        cap, abs=1e-5
    )
    assert optimum(loss) == pytest.approx(cap, abs=1e-5)


def test_soft_labels_are_cross_entropy_and_flips_a_mixture_of_both_ways():
    margins, share = double(-2.0, 0.0, 1.5), double(0.1, 0.5, 0.8)
    chance = margins.sigmoid()

    soft = bradley_terry_loss(margins, target=share)
    flipped = bradley_terry_loss(margins, flip_rate=0.2)

    assert soft.tolist() == pytest.approx(
        (-share * chance.log() - (1 - share) * (1 - chance).log()).tolist(), abs=1e-12
    )
    assert flipped.tolist() == pytest.approx((-(0.8 * chance + 0.2 * (1 - chance)).log()).tolist(), abs=1e-12)
    assert bradley_terry_loss(margins, flip_rate=share / 2)[2].item() == pytest.approx(
        -math.log(0.6 * chance[2] + 0.4 * (1 - chance[2])), abs=1e-12
    )


def test_each_option_of_a_pairs_loss_agrees_with_finite_differences():
    margins, rate = double(-2.0, 0.3, 1.5).requires_grad_(), double(0.1, 0.2, 0.4).requires_grad_()

    def loss(margins: Tensor, rate: Tensor) -> Tensor:
        return bradley_terry_loss(margins, margin=0.5, label_smoothing=0.1, flip_rate=rate, target=0.8)

    assert torch.autograd.gradcheck(loss, (margins, rate))


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_flips_and_smoothing_stay_finite_for_extreme_margins(margin):
    margins = torch.tensor([margin], requires_grad=True)

    loss = bradley_terry_loss(margins, flip_rate=0.1, label_smoothing=0.1)
    loss.sum().backward()

    assert math.isfinite(loss.item())
    assert margins.grad.isfinite().all()


# All pairs of a prompt


def test_all_pairs_is_the_mean_over_ordered_pairs():
    rewards = [0.3, 1.0, -2.0]
    pairs = [math.log1p(math.exp(worse - better)) for better, worse in itertools.combinations(rewards, 2)]

    losses = all_pairs_loss(
        double(*rewards, 9.0).repeat(3, 1), torch.tensor([[0, 1, 2, -1], [0, 0, 1, -1], [1, 1, 1, 1]])
    )

    assert losses.tolist() == pytest.approx([sum(pairs) / 3, (pairs[1] + pairs[2]) / 2, 0], abs=1e-12)


def test_the_gradient_of_all_pairs_is_the_mean_of_the_pairs_own_gradients():
    rewards, _ = random_batch(1, 9, 9)
    groups = torch.tensor([[3, 0, 8, 2, 1, 7, 5, 4, 6]])
    together = rewards.clone().requires_grad_()
    all_pairs_loss(together, groups).sum().backward()
    gradients = torch.zeros(1, 9, dtype=torch.float64)
    for one, other in itertools.combinations(range(9), 2):
        alone = rewards.clone().requires_grad_()
        first, second = (one, other) if groups[0, one] < groups[0, other] else (other, one)
        bradley_terry_loss(alone[:, first] - alone[:, second]).sum().backward()
        gradients += alone.grad / 36

    assert ((together.grad - gradients).norm() / gradients.norm()).item() < 1e-7


def test_responses_listed_twice_leave_the_prompts_weight_as_it_was():
    rewards, _ = random_batch(1, 4, 4)
    groups = torch.tensor([[2, 0, 3, 1]])
    once, twice = rewards.clone().requires_grad_(), rewards.clone().requires_grad_()

    all_pairs_loss(once, groups).sum().backward()
    loss = all_pairs_loss(twice.repeat(1, 2), groups.repeat(1, 2))
    loss.sum().backward()

    assert loss.item() == pytest.approx(all_pairs_loss(rewards, groups).item(), abs=1e-12)
    assert (twice.grad - once.grad).abs().max().item() < 1e-12


# Ties as outcomes


@pytest.mark.parametrize("margin", [-3.0, 0.0, 0.7])
def test_the_three_outcomes_of_a_pair_sum_to_one(margin):
    for outcomes in (rao_kupper(double(margin), 0.4), davidson(double(margin), -0.3)):
        assert outcomes.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_at_equal_rewards_ties_are_as_frequent_as_the_formulas_say():
    assert rao_kupper(double(0.0), math.log(1.7))[0, 2].exp().item() == pytest.approx(0.7 / 2.7, abs=1e-12)
    assert davidson(double(0.0), math.log(0.8))[0, 2].exp().item() == pytest.approx(0.8 / 2.8, abs=1e-12)


@pytest.mark.parametrize("outcomes", [rao_kupper(double(-2.0, 0.3), 0.0), davidson(double(-2.0, 0.3), -math.inf)])
def test_without_ties_both_models_are_bradley_terry(outcomes):
    chance = double(-2.0, 0.3).sigmoid()

    assert outcomes.exp().tolist() == [pytest.approx([p, 1 - p, 0], abs=1e-12) for p in chance.tolist()]


def test_where_there_is_no_tie_davidson_is_bradley_terry_and_rao_kupper_is_not():
    margins = torch.linspace(-6, 6, 25, dtype=torch.float64)

    def decided(outcomes: Tensor) -> Tensor:
        return outcomes[:, 0].exp() / outcomes[:, :2].exp().sum(1)

    assert (decided(davidson(margins, 0.5)) - margins.sigmoid()).abs().max().item() < 1e-12
    assert (decided(rao_kupper(margins, 0.5)) - margins.sigmoid()).abs().max().item() > 0.04


def test_the_tie_models_agree_with_finite_differences_and_stay_finite():
    margins, parameter = double(-2.0, 0.0, 0.7).requires_grad_(), double(0.4).requires_grad_()
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)

    for outcomes in (rao_kupper, davidson):
        assert torch.autograd.gradcheck(outcomes, (margins, parameter))
        (pull,) = torch.autograd.grad(outcomes(extreme, 0.4).sum(), extreme)
        assert outcomes(extreme, 0.4).isfinite().all()
        assert pull.isfinite().all()


def test_davidsons_lists_of_two_are_his_pairs():
    rewards, log_odds = double(0.8, -0.4).repeat(3, 1), double(-0.3, -1.0)

    losses = davidson_loss(rewards, torch.tensor([[0, 1], [1, 0], [0, 0]]), log_odds)

    assert losses.tolist() == pytest.approx((-davidson(double(1.2), -0.3)[0]).tolist(), abs=1e-12)


def by_sets(rewards: list[float], groups: list[int], log_odds: list[float]) -> float:
    """The definition of Davidson's model for lists: each group drawn among all sets of what is left."""

    def weight(members: tuple[int, ...]) -> float:
        size = len(members)
        return math.exp([0.0, *log_odds][min(size, len(log_odds) + 1) - 1] + sum(rewards[i] for i in members) / size)

    loss = 0.0
    for number in range(max(groups) + 1):
        left = [place for place, group in enumerate(groups) if group >= number]
        sets = (drawn for size in range(1, len(left) + 1) for drawn in itertools.combinations(left, size))
        drawn = tuple(place for place in left if groups[place] == number)
        loss += math.log(sum(weight(one) for one in sets) / weight(drawn))
    return loss


@pytest.mark.parametrize(
    "groups", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2], [1, 0, 0, 0, 2], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]]
)
def test_davidsons_lists_draw_among_all_sets(groups):
    rewards, log_odds = [0.3, -1.2, 2.5, 0.0, 0.9], [-0.5, -1.0, -3.0]

    loss = davidson_loss(double(*rewards, 7.0)[None], torch.tensor([[*groups, -1]]), double(*log_odds))

    assert loss.item() == pytest.approx(by_sets(rewards, groups, log_odds), abs=1e-12)


def test_the_probabilities_of_all_rankings_with_ties_sum_to_one():
    rankings = torch.tensor(orders(4))

    losses = davidson_loss(double(0.3, -1.0, 2.0, 0.0).expand(75, 4), rankings, double(-0.3, -1.0))

    assert len(rankings) == 75
    assert (-losses).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_davidsons_lists_know_neither_origin_nor_order_and_have_the_right_gradient():
    rewards, groups = random_batch(20, 6, 3)
    log_odds = double(-0.5, -1.0).requires_grad_()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    losses = davidson_loss(rewards, groups, log_odds)

    assert (davidson_loss(rewards + 50, groups, log_odds) - losses).abs().max().item() < 1e-11
    assert (davidson_loss(rewards[:, order], groups[:, order], log_odds) - losses).abs().max().item() < 1e-12
    assert torch.autograd.gradcheck(
        lambda given, odds: davidson_loss(given, groups[:5], odds), (rewards[:5].requires_grad_(), log_odds)
    )


def test_davidsons_lists_end_where_nobody_sorted_the_rest():
    rewards, log_odds = [0.3, -1.2, 2.5, 0.0], [-0.5, -1.0]
    rankings = [list(one) for one in itertools.product((0, 1), repeat=4) if 0 in one]  # all that can be drawn first
    groups = torch.tensor(rankings)

    losses = davidson_loss(double(*rewards).expand(15, 4), groups, double(*log_odds), groups == 1)

    last = [[0 for group in ranking if group] for ranking in rankings]
    expected = [
        by_sets(rewards, ranking, log_odds)
        - (by_sets([own for own, group in zip(rewards, ranking, strict=True) if group], rest, log_odds) if rest else 0)
        for ranking, rest in zip(rankings, last, strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert (-losses).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rewards", [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
@pytest.mark.parametrize("groups", [[0, 1, 2], [0, 0, 1], [0, 0, 0], [0, -1, 0], [-1, -1, -1]])
def test_davidsons_lists_stay_finite(rewards, groups):
    given, log_odds = torch.tensor([rewards], requires_grad=True), torch.zeros(2, requires_grad=True)

    loss = davidson_loss(given, torch.tensor([groups]), log_odds)
    loss.sum().backward()

    assert loss.isfinite().all()
    assert given.grad.isfinite().all()
    assert log_odds.grad.isfinite().all()


# The likelihood that reward models are trained on


NOISY = {"margin": 0.5, "label_smoothing": 0.1, "flip_rate": 0.1, "learn_flip_rate": True}
LENGTH = {"length_spread": 0.7, "aspects": ("overall", "style")}
OPTIONS: list[dict[str, Any]] = [
    {"loss": loss, "ties": ties, "annotators": annotators, "num_annotators": 3, **noise}
    for loss in ("plackett_luce", "all_pairs")
    for ties in ("exact", "efron", "davidson", "rao_kupper")
    for annotators in ("equal", "temperatures", "flip_rates")
    for noise in ({}, NOISY)
]
OPTIONS += [
    {"loss": loss, "ties": ties, "annotators": "temperatures", "num_annotators": 3, **NOISY, **LENGTH}
    for loss, ties in (("plackett_luce", "exact"), ("plackett_luce", "davidson"), ("all_pairs", "rao_kupper"))
]


def random_judgments(num_rows: int, num_responses: int) -> tuple[Tensor, Judged]:
    rewards, groups = random_batch(num_rows, num_responses, 3)
    groups = torch.where(groups < 0, -1, groups - groups.masked_fill(groups < 0, 9).amin(1, keepdim=True))
    numbers = torch.arange(num_rows)
    lengths = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return rewards, Judged(groups, (numbers % 3).double(), numbers % 4 - 1, lengths, numbers % 2)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_whatever_the_options_a_constant_and_the_order_change_nothing_and_gradients_are_right(options):
    likelihood = Likelihood(**options).double()
    with torch.no_grad():
        for number, parameter in enumerate([likelihood.length_weights, *likelihood.opponents]):
            if parameter is not None:
                parameter.add_(double(0.6, -0.2) - number)
    for num_responses in (2, 5):
        rewards, judged = random_judgments(8, num_responses)
        order = torch.randperm(num_responses, generator=torch.Generator().manual_seed(1))
        losses = likelihood(rewards, judged)
        reordered = dataclasses.replace(judged, groups=judged.groups[:, order], lengths=judged.lengths[:, order])
        longer = dataclasses.replace(judged, lengths=judged.lengths + 7)

        assert losses.shape == (8,)
        assert (likelihood(rewards + 30, judged) - losses).abs().max().item() < 1e-11
        assert (likelihood(rewards, longer) - losses).abs().max().item() < 1e-12
        assert (likelihood(rewards[:, order], reordered) - losses).abs().max().item() < 1e-12
        assert torch.autograd.gradcheck(
            lambda given, *_, judged=judged: likelihood(given, judged),
            (rewards.requires_grad_(), *likelihood.parameters()),
        )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_parameter_has_a_finite_gradient_whatever_the_batch_holds(options):
    likelihood = Likelihood(**options)
    rewards = torch.tensor([[1e4, -1e4, math.nan], [0.0, 0.0, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    groups = torch.tensor([[0, 1, -1], [-1, -1, -1], [0, 0, 1]])

    for annotator in (None, torch.tensor([-1, -1, -1]), torch.tensor([0, -1, 2])):
        likelihood.zero_grad()
        losses = likelihood(rewards, Judged(groups, torch.ones(3), annotator, torch.ones(3, 3).cumsum(1)))
        losses.sum().backward()

        assert losses.isfinite().all()
        assert rewards.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in likelihood.parameters())


def test_by_default_it_is_the_ranking_loss():
    rewards, groups = random_batch(50, 5, 3)

    assert Likelihood()(rewards, Judged(groups)).tolist() == ranking_loss(rewards, groups).tolist()
    assert Likelihood().learned() == {}
    assert Likelihood()(rewards.bfloat16(), Judged(groups)).dtype == torch.float32


@pytest.mark.parametrize("ties", ["exact", "efron", "davidson", "rao_kupper"])
@pytest.mark.parametrize("loss", ["plackett_luce", "all_pairs"])
def test_it_tells_which_rankings_teach_anything(loss, ties):
    likelihood = Likelihood(loss=loss, ties=ties)
    rankings = [[0, 1], [0, 0, 1, -1], [0, 0], [0, 0, -1, 0], [0, -1], [-1, -1]]

    def has_gradient(groups: list[int]) -> bool:
        rewards = torch.linspace(0, 1, len(groups), requires_grad=True)
        likelihood(rewards[None], Judged(torch.tensor([groups]))).sum().backward()
        return bool(rewards.grad.any())

    assert [likelihood.teaches(groups) for groups in rankings] == [has_gradient(groups) for groups in rankings]


@pytest.mark.parametrize("loss", ["plackett_luce", "all_pairs"])
@pytest.mark.parametrize("ties", ["exact", "efron", "davidson", "rao_kupper"])
def test_a_last_group_that_nobody_sorted_tells_nothing_of_its_members(loss, ties):
    likelihood = Likelihood(loss=loss, ties=ties, flip_rate=0.1).double()
    rewards, groups = double(1.0, -0.3, 0.4, 7.0, -1.0).requires_grad_(), torch.tensor([[0, 1, 1, -1, 1]])
    judged = Judged(groups, is_unsorted=groups == 1)

    found = likelihood(rewards[None], judged)

    if ties in {"exact", "efron"}:
        assert found.tolist() == likelihood(rewards[None], Judged(groups)).tolist()
    if loss == "all_pairs" or ties == "rao_kupper":
        pairs = torch.stack([rewards[[0, place]] for place in (1, 2, 4)])
        expected = likelihood(pairs, Judged(torch.tensor([[0, 1]] * 3))).mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.autograd.gradcheck(lambda given: likelihood(given[None], judged), (rewards,))
    assert likelihood.teaches((0, 1, 1), (False, True, True))
    assert not likelihood.teaches((0, 0, 0), (True, True, True))
    nothing = Judged(torch.zeros_like(groups), is_unsorted=torch.ones_like(groups, dtype=torch.bool))
    assert likelihood(rewards[None], nothing).item() == pytest.approx(0, abs=1e-12)


def test_a_list_is_no_longer_for_what_nobody_sorted():
    likelihood = Likelihood(ties="davidson").double()
    judged = Judged(
        torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3]]), is_unsorted=torch.tensor([[0, 1, 1, 1], [0] * 4]).bool()
    )

    best, whole = likelihood(torch.zeros(2, 4).double(), judged)

    odds = [1.0, 0.5, 0.5 / 4, 0.5 / 16]
    first = [math.log(sum(math.comb(left, size) * odds[size - 1] for size in range(1, left + 1))) for left in (4, 3, 2)]
    assert best.item() == pytest.approx(first[0], abs=1e-6)
    assert whole.item() == pytest.approx(sum(first) / 3, abs=1e-6)


def test_labels_of_lists_with_an_unsorted_group_are_not_smoothed_under_davidson():
    groups = torch.tensor([[0, 1, 1]])
    judged = Judged(groups, is_unsorted=groups == 1)

    with pytest.raises(ValueError, match="label_smoothing takes no unsorted groups under davidson"):
        Likelihood(ties="davidson", label_smoothing=0.1)(torch.zeros(1, 3), judged)
    for options in ({"loss": "all_pairs", "ties": "davidson"}, {"ties": "rao_kupper"}, {"ties": "exact"}):
        smoothed = Likelihood(**options, label_smoothing=0.1)
        rewards = torch.zeros(1, 3)
        plain = Likelihood(**options)
        opposite = plain(rewards, dataclasses.replace(judged, groups=1 - groups))
        expected = 0.9 * plain(rewards, judged) + 0.1 * opposite
        assert smoothed(rewards, judged).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_graded_strength_moves_the_margin_of_pairs_only():
    rewards = double(0.5, 0.2, 0.0).repeat(5, 1)
    groups = torch.tensor([[0, 1, -1], [0, 1, -1], [1, 0, -1], [0, 0, -1], [0, 1, 2]])
    strength = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0])

    losses = Likelihood(margin=0.4)(rewards, Judged(groups, strength))

    expected = [math.log1p(math.exp(-lead)) for lead in (0.3, 0.3 - 0.4, -0.3 - 0.4)]
    assert losses[:4].tolist() == pytest.approx([*expected, 0], abs=1e-12)
    assert losses[4].item() == ranking_loss(rewards, groups)[4].item()
    assert Likelihood(margin=0.4)(rewards, Judged(groups, 0 * strength)).tolist() == pytest.approx(
        ranking_loss(rewards, groups).tolist(), abs=1e-12
    )


@pytest.mark.parametrize("loss", ["plackett_luce", "all_pairs"])
def test_noise_in_lists_of_two_is_noise_in_pairs(loss):
    margins = double(-2.0, 0.0, 0.7)
    rewards, judged = torch.stack([margins, 0 * margins], 1), Judged(torch.tensor([[0, 1]] * 3))

    losses = Likelihood(loss=loss, flip_rate=0.2, label_smoothing=0.1)(rewards, judged)

    assert losses.tolist() == pytest.approx(
        bradley_terry_loss(margins, flip_rate=0.2, label_smoothing=0.1).tolist(), abs=1e-12
    )


def test_flips_of_lists_leave_the_probabilities_of_all_orders_summing_to_one():
    groups = torch.tensor(list(itertools.permutations(range(4))))
    rewards = double(0.3, -1.0, 2.0, 0.0).expand(24, 4)

    probabilities = (-3 * Likelihood(flip_rate=0.2)(rewards, Judged(groups))).exp()

    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert probabilities.min().item() > 0.4 / 24


def test_smoothing_mixes_a_list_with_its_opposite():
    rewards = double(0.3, -1.0, 2.0, 5.0)[None]

    def loss(*groups: int) -> float:
        return plackett_luce_loss(rewards, torch.tensor([groups])).item()

    smoothed = Likelihood(label_smoothing=0.1)(rewards, Judged(torch.tensor([[0, 2, 1, -1]])))

    assert smoothed.item() == pytest.approx((0.9 * loss(0, 2, 1, -1) + 0.1 * loss(2, 0, 1, -1)) / 2, abs=1e-12)


def test_with_flips_between_pairs_ties_stay_ties():
    rewards, groups = double(0.7, 0.0).repeat(3, 1), torch.tensor([[0, 1], [1, 0], [0, 0]])

    for ties in ("davidson", "rao_kupper"):
        clean, noisy = (
            (-Likelihood(loss="all_pairs", ties=ties, flip_rate=rate)(rewards, Judged(groups))).exp()
            for rate in (0.0, 0.2)
        )

        assert clean.sum().item() == pytest.approx(1, abs=1e-7)
        assert noisy.tolist() == pytest.approx(
            [(0.8 * clean[0] + 0.2 * clean[1]).item(), (0.8 * clean[1] + 0.2 * clean[0]).item(), clean[2].item()]
        )


def test_each_ranking_has_one_voice_under_the_tie_models_too():
    rewards = torch.zeros(3, 4, dtype=torch.float64)
    groups = torch.tensor([[0, 1, -1, -1], [0, 1, 2, 3], [0, 0, 0, 0]])
    pair = math.log(0.4)  # two equal responses tie, at first, one time in five

    losses = Likelihood(ties="rao_kupper")(rewards, Judged(groups))
    lists = Likelihood(ties="davidson")(rewards, Judged(groups))

    assert losses.tolist() == pytest.approx([-pair, -pair, -math.log(0.2)], abs=1e-6)
    odds = [0.5, 0.125, 0.03125]
    sums = [4 + 6 * odds[0] + 4 * odds[1] + odds[2], 3 + 3 * odds[0] + odds[1], 2 + odds[0]]
    assert lists.tolist() == pytest.approx(
        [-pair, sum(map(math.log, sums)) / 3, math.log(sums[0] / odds[2]) / 3], abs=1e-6
    )


def test_centring_adds_the_square_of_the_sum_of_a_pair_and_is_off_by_default():
    rewards = double(1.0, 2.0, math.nan).repeat(2, 1).nan_to_num(nan=7.0)
    groups = torch.tensor([[0, 1, -1], [0, 1, 2]])

    penalty = Likelihood(centring=0.01)(rewards, Judged(groups)) - Likelihood()(rewards, Judged(groups))

    assert penalty.tolist() == pytest.approx([0.09, 0.01 * (20 / 3) ** 2], abs=1e-12)


def test_judgments_follow_reward_and_length_and_the_reward_pays_for_following_length_itself():
    likelihood = Likelihood(length_spread=2.0, length_penalty=0.3, aspects=("overall", "style")).double()
    with torch.no_grad():
        likelihood.length_weights += double(0.6, -1.0)
        likelihood.length_prices += double(0.2, 0.5)
    rewards = double(1.0, 0.0, 7.0).repeat(2, 1)
    judged = Judged(torch.tensor([[0, 1, -1]] * 2), lengths=double(9.0, 5.0, 1.0).repeat(2, 1), aspect=torch.arange(2))

    losses = likelihood(rewards, judged)

    # the first is 4 doublings, so 2 spreads, longer: 1 above and 1 below the mean; the covariance is (1·1 + 0·-1) / 2
    overall = math.log1p(math.exp(-(1 + 0.6 * 2))) + 0.2 / 2 - 0.2**2 / 1.2
    style = math.log1p(math.exp(-(1 - 1.0 * 2))) + 0.5 / 2 - 0.5**2 / 1.2
    assert losses.tolist() == pytest.approx([overall, style], abs=1e-12)
    assert likelihood.nats_per_doubling == {"overall": pytest.approx(0.3), "style": pytest.approx(-0.5)}
    assert likelihood.learned() == {"nats_per_doubling_of_length": likelihood.nats_per_doubling}


def test_the_most_that_the_price_makes_of_length_is_the_squared_covariance_over_all_rankings():
    rewards, judged = random_judgments(50, 4)
    judged = dataclasses.replace(judged, aspect=None)
    likelihood = Likelihood(length_spread=1.0, length_penalty=0.7).double()
    plain = likelihood(rewards, judged).mean()

    (price,) = likelihood.opponents
    minimised(lambda: -likelihood(rewards, judged).mean(), price)

    is_ranked = judged.groups >= 0
    lengths, rewards = (values.masked_fill(~is_ranked, math.nan) for values in (judged.lengths, rewards))
    products = (rewards - rewards.nanmean(1, True)) * (lengths - lengths.nanmean(1, True))
    covariance = products.nanmean(1).nan_to_num().mean().item()
    assert price.item() == pytest.approx(2 * 0.7 * covariance)
    assert (likelihood(rewards.nan_to_num(), judged).mean() - plain).item() == pytest.approx(0.7 * covariance**2)


def test_where_lengths_are_not_told_or_all_alike_length_counts_for_nothing():
    rewards, judged = random_judgments(6, 4)
    untold = dataclasses.replace(judged, lengths=None)
    likelihood = Likelihood(length_spread=1.0, aspects=("overall", "style")).double()
    with torch.no_grad():
        likelihood.length_weights += 1

    expected = Likelihood()(rewards, untold).tolist()
    assert likelihood(rewards, untold).tolist() == expected
    assert likelihood(rewards, dataclasses.replace(judged, lengths=judged.lengths * 0 + 3)).tolist() == expected
    assert Likelihood()(rewards, judged).tolist() == expected
    assert Likelihood(length_spread=1.0, length_penalty=0.0).opponents == Likelihood().opponents == []


def test_an_unknown_annotator_is_the_usual_one():
    rewards, groups = random_batch(6, 4, 3)
    unknown = Judged(groups, annotator=torch.full((6,), -1))
    tempered = Likelihood(annotators="temperatures", num_annotators=2).double()
    flipped = Likelihood(annotators="flip_rates", num_annotators=2, flip_rate=0.1).double()
    with torch.no_grad():
        tempered.log_temperatures.add_(1)
        flipped.annotator_flips.add_(1)

    assert tempered(rewards, unknown).tolist() == ranking_loss(rewards, groups).tolist()
    assert flipped(rewards, unknown).tolist() == Likelihood(flip_rate=0.1)(rewards, unknown).tolist()


def test_an_annotators_prior_is_spread_over_the_annotators_judgments():
    likelihood = Likelihood(annotators="temperatures", num_annotators=2, num_judgments=[4, 2]).double()
    with torch.no_grad():
        likelihood.log_temperatures += double(0.5, -1.0)
    judged = Judged(torch.zeros(6, 2, dtype=torch.int64), annotator=torch.tensor([0, 0, 0, 0, 1, 1]))

    losses = likelihood(torch.zeros(6, 2, dtype=torch.float64), judged)

    assert losses.tolist() == pytest.approx([0.5 / 4] * 4 + [2 / 2] * 2)  # (0.5 / 0.5)² / 2 and (-1 / 0.5)² / 2
    assert likelihood.learned() == {"temperatures": pytest.approx([math.exp(0.5), math.exp(-1)])}


def test_what_was_learned_is_told_as_plain_numbers():
    davidson_told = Likelihood(ties="davidson").learned()["davidson_odds"]
    told = Likelihood(ties="rao_kupper", learn_flip_rate=True, annotators="flip_rates", num_annotators=2).learned()

    assert list(davidson_told) == [str(size) for size in range(2, 11)]
    assert davidson_told["2"] == pytest.approx(0.5)
    assert told == {
        "rao_kupper_theta": pytest.approx(1.5),
        "flip_rate": pytest.approx(0.05),
        "flip_rates": [pytest.approx(0.05)] * 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "listmle"}, "loss 'listmle' is not one of plackett_luce, all_pairs"),
        ({"ties": "breslow"}, "ties 'breslow' is not one of exact, efron, davidson, rao_kupper"),
        ({"annotators": "gold"}, "annotators 'gold' is not one of equal, weights, temperatures, flip_rates"),
        ({"flip_rate": 0.5}, "flip_rate 0.5 must be at least 0 and below 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing -0.1 must be at least 0 and below 0.5"),
        ({"margin": -1.0}, "margin, centring and num_annotators must not be negative"),
        ({"num_annotators": 2, "num_judgments": [1]}, "num_judgments must be 2 positive numbers"),
        ({"length_penalty": -1.0}, "length_spread and length_penalty must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Likelihood(**options)


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({"strength": torch.ones(3)}, r"strength \(3,\) must be \(B,\)"),
        ({"annotator": torch.zeros(1, dtype=torch.int64)}, r"annotator \(1,\) must be \(B,\)"),
        ({"annotator": torch.tensor([0, 2])}, "annotator 2 is not one of 2"),
        ({"lengths": torch.zeros(2)}, r"lengths \(2,\) must be as rewards \(2, 2\)"),
        ({"aspect": torch.zeros(1, dtype=torch.int64)}, r"aspect \(1,\) must be \(B,\)"),
        ({"aspect": torch.tensor([0, 1])}, "aspect 1 is not one of 1"),
        ({"is_unsorted": torch.zeros(2, dtype=torch.bool)}, r"is_unsorted \(2,\) must be as rewards \(2, 2\)"),
    ],
)
def test_judgments_of_another_shape_are_refused(judged, message):
    likelihood = Likelihood(annotators="temperatures", num_annotators=2, length_spread=1.0)

    with pytest.raises(ValueError, match=message):
        likelihood(torch.zeros(2, 2), Judged(torch.tensor([[0, 1], [1, 0]]), **judged))


# Recovery of what is known


VOTES = torch.tensor([[0, 1], [1, 0], [0, 0]])
"""The three outcomes of a pair, as groups."""


def tallied(counts: Tensor) -> tuple[Tensor, Judged, Tensor]:
    """Pairs, judgments and votes from (P, 3) counts over all pairs, in the order that `rao_kupper` has."""
    pairs = all_pairs_of(round((1 + math.sqrt(1 + 8 * len(counts))) / 2))
    return pairs.repeat_interleave(3, 0), Judged(VOTES.repeat(len(counts), 1)), counts.flatten()


def noisy_votes(seed: int, spread: float, flip_rate: float) -> tuple[Tensor, Tensor]:
    """Strengths of 30 items, and (435, 3) counts of 40,000 votes of which some are the wrong way round."""
    generator = torch.Generator().manual_seed(seed)
    strengths = normal_strengths(30, spread, generator)
    one, other = all_pairs_of(30).T
    chance = flip_rate + (1 - 2 * flip_rate) * (strengths[one] - strengths[other]).sigmoid()
    return strengths, drawn_votes(torch.stack([chance, 1 - chance, 0 * chance], 1).log(), 40_000, generator)


def mean_slope(spread: float, **options: Any) -> float:
    """Over five seeds, of the strengths found from votes of which a quarter are the wrong way round."""
    slopes = []
    for seed in range(5):
        strengths, counts = noisy_votes(seed, spread, 0.25)
        slopes.append(slope(fitted(Likelihood(**options), *tallied(counts)), strengths))
    return sum(slopes) / len(slopes)


@pytest.mark.parametrize(("spread", "plain"), [(1.0, 0.39), (2.0, 0.30)])
def test_flips_flatten_plain_strengths_and_knowing_of_them_restores_these(spread, plain):
    assert mean_slope(spread) == pytest.approx(plain, abs=0.06)
    assert 0.9 < mean_slope(spread, flip_rate=0.25) < 1.1
    assert 0.9 < mean_slope(spread, learn_flip_rate=True) < 1.1


def test_the_flip_rate_is_learned():
    _, counts = noisy_votes(0, 2.0, 0.25)
    likelihood = Likelihood(learn_flip_rate=True)

    fitted(likelihood, *tallied(counts))

    assert likelihood.learned() == {"flip_rate": pytest.approx(0.25, abs=0.02)}


@pytest.mark.parametrize(
    ("ties", "outcomes", "name", "truth"),
    [("rao_kupper", rao_kupper, "rao_kupper_theta", 1.7), ("davidson", davidson, "davidson_odds", 0.8)],
)
@pytest.mark.parametrize("loss", ["plackett_luce", "all_pairs"])
def test_a_tie_model_finds_strengths_and_how_often_ties_are(loss, ties, outcomes, name, truth):
    generator = torch.Generator().manual_seed(0)
    strengths = normal_strengths(30, 1.0, generator)
    one, other = all_pairs_of(30).T
    counts = drawn_votes(outcomes(strengths[one] - strengths[other], math.log(truth)), 200_000, generator)
    likelihood = Likelihood(loss=loss, ties=ties)

    found = fitted(likelihood, *tallied(counts))

    told = likelihood.learned()[name]
    assert (told["2"] if ties == "davidson" else told) == pytest.approx(truth, rel=0.05)
    assert slope(found, strengths) == pytest.approx(1, abs=0.03)


def test_lists_with_ties_tell_strengths_and_how_often_groups_of_each_size_are():
    generator = torch.Generator().manual_seed(0)
    strengths, log_odds = normal_strengths(8, 1.0, generator), double(0.6, 0.3, 0.1).log()
    shown = torch.combinations(torch.arange(8), 4)
    rankings = torch.tensor(orders(4))
    losses = davidson_loss(strengths[shown].repeat_interleave(75, 0), rankings.repeat(70, 1), log_odds)
    drawn = torch.multinomial((-losses).exp().reshape(70, 75), 300, replacement=True, generator=generator)
    votes = torch.nn.functional.one_hot(drawn, 75).sum(1).flatten().double()
    likelihood = Likelihood(ties="davidson")

    found = fitted(likelihood, shown.repeat_interleave(75, 0), Judged(rankings.repeat(70, 1)), votes)

    odds = likelihood.learned()["davidson_odds"]
    assert [odds[size] for size in "234"] == pytest.approx([0.6, 0.3, 0.1], rel=0.1)
    assert slope(found, strengths) == pytest.approx(1, abs=0.03)


def many_worlds(
    outcomes: Callable[..., Tensor], log_parameter: float, num_worlds: int, num_votes: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Strengths (S, 30) of worlds with a model of ties, and twice the counts (S, 435, 3) of votes in them."""
    generator = torch.Generator().manual_seed(0)
    strengths = torch.stack([normal_strengths(30, spread, generator) for _ in range(num_worlds)])
    one, other = all_pairs_of(30).T
    log_probabilities = outcomes(strengths[:, one] - strengths[:, other], log_parameter)
    votes, held_out = (drawn_votes(log_probabilities, num_votes, generator) for _ in range(2))
    return strengths, votes, held_out


def fitted_worlds(log_probabilities: Callable[[Tensor, Tensor], Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
    """Strengths (S, 30) and log-probabilities (S, 435, 3) of all worlds, each with a parameter of its own."""
    strengths, parameter = torch.zeros(len(counts), 30).double(), torch.zeros(len(counts), 1).double()
    one, other = all_pairs_of(30).T

    def found() -> Tensor:
        return log_probabilities(strengths[:, one] - strengths[:, other], parameter)

    minimised(lambda: -(counts * found()).sum() / counts.sum(), strengths, parameter)
    return (strengths - strengths.mean(1, keepdim=True)).detach(), found().detach()


def by_rao_kupper(margins: Tensor, parameter: Tensor) -> Tensor:
    return rao_kupper(margins, parameter.exp())


def without_ties(margins: Tensor, parameter: Tensor) -> Tensor:
    return torch.stack([logsigmoid(margins + 0 * parameter), logsigmoid(-margins)], -1)


def error(found: Tensor, truth: Tensor) -> float:
    return (found - truth).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("outcomes", "model", "parameter", "slope_dropped", "slope_halved"),
    [(rao_kupper, by_rao_kupper, 1.7, 1.22, 0.93), (davidson, davidson, 0.8, 1.0, 0.70)],
)
def test_dropping_ties_is_harmless_under_davidson_only_and_half_wins_under_neither(
    outcomes, model, parameter, slope_dropped, slope_halved
):
    strengths, counts, _ = many_worlds(outcomes, math.log(parameter), 5, 20_000)

    with_model, _ = fitted_worlds(model, counts)
    dropped, _ = fitted_worlds(without_ties, counts[..., :2])
    halved, _ = fitted_worlds(without_ties, counts[..., :2] + counts[..., 2:] / 2)

    assert error(with_model, strengths) < 0.09
    assert slope(with_model, strengths) == pytest.approx(1, abs=0.03)
    assert slope(dropped, strengths) == pytest.approx(slope_dropped, abs=0.05)
    assert slope(halved, strengths) == pytest.approx(slope_halved, abs=0.03)
    assert error(with_model, strengths) < min(error(dropped, strengths), error(halved, strengths))


@pytest.mark.parametrize(("outcomes", "parameter"), [(rao_kupper, 1.7), (davidson, 0.8)])
def test_held_out_votes_choose_the_model_of_ties_that_is_true(outcomes, parameter):
    # a spread of 1 would leave Davidson 5.2 nats ahead on average, with a standard deviation of 3.6: 93 % of the time
    _, counts, held_out = many_worlds(outcomes, math.log(parameter), 40, 5_000, spread=1.5)

    one, other = (
        (held_out * fitted_worlds(model, counts)[1]).sum((1, 2))
        for model in ((by_rao_kupper, davidson) if outcomes is rao_kupper else (davidson, by_rao_kupper))
    )

    assert (one > other).sum().item() >= 38


def in_closed_form(num_responses: int) -> float:
    """The squared error of all pairs over that of Plackett-Luce, in rankings of equal responses.

    A response's score among all pairs is its rank, of variance (K² - 1) / 12, so their inverse information is
    (4 / 3) (K + 1) / K. Plackett-Luce's is K - 1 over the sum of its stages, of which one with m left tells 1 - 1 / m.
    """
    told = sum(1 - 1 / left for left in range(2, num_responses + 1))
    return 4 / 3 * (num_responses + 1) / num_responses * told / (num_responses - 1)


@pytest.mark.parametrize(
    ("num_responses", "spread", "ratio"),
    [(4, 0.0, in_closed_form(4)), (9, 0.0, in_closed_form(9)), (4, 1.0, 1.10), (9, 1.0, 1.22)],
)
def test_all_pairs_waste_some_of_what_rankings_tell(num_responses, spread, ratio):
    generator = torch.Generator().manual_seed(0)
    strengths = torch.stack([normal_strengths(20, spread, generator) for _ in range(50)])
    shown = torch.rand(50, 300, 20, generator=generator).argsort(2)[:, :, :num_responses]
    shown = (shown + 20 * torch.arange(50)[:, None, None]).flatten(0, 1)
    gumbel = -torch.rand(shown.shape, generator=generator, dtype=torch.float64).log().neg().log().neg()
    groups = (strengths.flatten()[shown] - gumbel).argsort(1, descending=True).argsort(1)

    def squared_error(loss: str) -> float:
        found = fitted(Likelihood(loss=loss), shown, Judged(groups), torch.ones(len(shown))).reshape(50, 20)
        return error(found - found.mean(1, keepdim=True), strengths) ** 2

    assert squared_error("all_pairs") / squared_error("plackett_luce") == pytest.approx(ratio, rel=0.06)


def judged_by_many(chances: Tensor, pairs: Tensor, votes_each: int) -> tuple[Tensor, Judged, Tensor]:
    """(A, P) chances of each annotator's voting for the first of each pair -> what `fitted` takes."""
    generator = torch.Generator().manual_seed(1)
    num_annotators, num_pairs = chances.shape
    won = torch.binomial(torch.full_like(chances, votes_each / num_pairs), chances, generator=generator)
    counts = torch.stack([won, votes_each / num_pairs - won], 2)
    shown = pairs.repeat_interleave(2, 0).repeat(num_annotators, 1)
    groups = torch.tensor([[0, 1], [1, 0]]).repeat(num_annotators * num_pairs, 1)
    annotator = torch.arange(num_annotators).repeat_interleave(2 * num_pairs)
    return shown, Judged(groups, annotator=annotator), counts.flatten()


def test_temperatures_of_annotators_are_found_up_to_a_common_factor():
    strengths = normal_strengths(30, 1.5, torch.Generator().manual_seed(0))
    temperatures = double(0.4, 0.7, 1.0, 1.0, 1.6, 3.0)
    pairs = all_pairs_of(30)
    margins = strengths[pairs[:, 0]] - strengths[pairs[:, 1]]
    votes = judged_by_many((margins / temperatures[:, None]).sigmoid(), pairs, 4350)
    likelihood = Likelihood(annotators="temperatures", num_annotators=6, num_judgments=[4350] * 6)

    found = fitted(likelihood, *votes)

    told = double(*likelihood.learned()["temperatures"]).log()
    assert (told - told.mean()).tolist() == pytest.approx(
        (temperatures.log() - temperatures.log().mean()).tolist(), abs=0.15
    )
    assert slope(found / (told - temperatures.log()).mean().exp(), strengths) == pytest.approx(1, abs=0.1)


def test_flip_rates_of_annotators_are_found_and_those_of_few_judgments_stay_usual():
    strengths = normal_strengths(30, 1.5, torch.Generator().manual_seed(0))
    rates = double(0.02, 0.02, 0.1, 0.2, 0.3, 0.45)
    pairs = all_pairs_of(30)
    chances = (strengths[pairs[:, 0]] - strengths[pairs[:, 1]]).sigmoid()
    votes = judged_by_many(rates[:, None] + (1 - 2 * rates[:, None]) * chances, pairs, 4350)
    likelihood = Likelihood(annotators="flip_rates", num_annotators=7, num_judgments=[4350] * 6 + [1])

    found = fitted(likelihood, *votes)

    assert slope(found, strengths) == pytest.approx(1, abs=0.1)
    told = likelihood.learned()["flip_rates"]
    assert told[:6] == pytest.approx(rates.tolist(), abs=0.04)
    assert told[6] == pytest.approx(0.05)


def test_the_penalty_that_centres_shrinks_true_differences():
    strengths, counts = noisy_votes(0, 1.0, 0.0)

    slopes = [
        slope(fitted(Likelihood(centring=weight), *tallied(counts)), strengths) for weight in (0, 0.001, 0.01, 0.1)
    ]

    assert slopes == pytest.approx([1, 0.99, 0.85, 0.43], abs=0.03)


def length_world(num_prompts: int, nats_per_doubling: float, seed: int) -> tuple[Tensor, Tensor, Judged]:
    """Features (B, 4, 9) of responses, of which the last tells their length, which makes them no better; what they are
    worth; and judgments, which follow length as well."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_prompts, 4, 9, generator=generator)
    lengths = 8 + 1.5 * features[..., 8]
    worth = 0.7 * features[..., :4].sum(2) + torch.tanh(2 * features[..., 4] * features[..., 5])
    chance = -torch.empty_like(worth).exponential_(generator=generator).log()
    groups = (-(worth + nats_per_doubling * lengths + chance)).argsort(1).argsort(1)
    return features, worth, Judged(groups, lengths=lengths)


def reward_net_trained_on(features: Tensor, judged: Judged, likelihood: Likelihood) -> nn.Module:
    """Two layers that see the length, trained in small steps, as reward models are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 32), nn.Tanh(), nn.Linear(32, 1))
    judging = {"lr": 0.05, "betas": (0.9, 0.999)}
    groups = [{"params": list(net.parameters())}]
    if likelihood.length_weights is not None:
        groups += [{"params": likelihood.length_weights, **judging}]
        groups += [{"params": likelihood.opponents, **judging, "maximize": True}]
    optimizer = torch.optim.AdamW(groups, lr=5e-3)
    steps = [rows for _ in range(3) for rows in torch.randperm(len(features)).split(32)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(steps))
    for rows in steps:
        optimizer.zero_grad()
        shown = Judged(judged.groups[rows], lengths=judged.lengths[rows])
        likelihood(net(features[rows])[..., 0], shown).mean().backward()
        optimizer.step()
        schedule.step()
    return net


def learned_in_length_world(nats_per_doubling: float, *, is_controlled: bool) -> tuple[float | None, float, float]:
    """What length was found to count for, and on other prompts the accuracy against what responses are worth, and
    Spearman's correlation of rewards and lengths within prompts."""
    features, _, judged = length_world(12_000, nats_per_doubling, 0)
    spread = judged.lengths.var(1, unbiased=False).mean().sqrt().item() if is_controlled else 0.0
    likelihood = Likelihood(length_spread=spread)
    net = reward_net_trained_on(features, judged, likelihood)
    features, worth, judged = length_world(3000, nats_per_doubling, 100)
    with torch.no_grad():
        rewards = net(features)[..., 0]
    one, other = all_pairs_of(4).T
    is_right = (rewards[:, one] > rewards[:, other]) == (worth[:, one] > worth[:, other])
    correlation = spearman(list(rewards.double().numpy()), list(judged.lengths.double().numpy())).mean()
    return likelihood.nats_per_doubling.get("overall"), is_right.double().mean().item(), correlation


def test_what_length_counts_for_is_found_and_left_out_of_rewards():
    _, best, _ = learned_in_length_world(0.0, is_controlled=False)

    _, accuracy, correlation = learned_in_length_world(0.5, is_controlled=False)
    found, controlled_accuracy, controlled_correlation = learned_in_length_world(0.5, is_controlled=True)

    assert (accuracy, correlation) == (pytest.approx(0.84, abs=0.02), pytest.approx(0.35, abs=0.03))
    assert found == pytest.approx(0.5, rel=0.1)
    assert abs(controlled_correlation) <= 0.05
    assert controlled_accuracy >= best - 0.01


def test_where_judgments_do_not_follow_length_to_control_it_changes_nothing():
    _, accuracy, _ = learned_in_length_world(0.0, is_controlled=False)
    found, controlled_accuracy, correlation = learned_in_length_world(0.0, is_controlled=True)

    assert found == pytest.approx(0, abs=0.03)
    assert controlled_accuracy == pytest.approx(accuracy, abs=0.003)
    assert abs(correlation) <= 0.05
