import itertools
import math

import pytest
import torch
from torch import Tensor

from training.alignment.losses import num_choices, plackett_luce_loss, ranking_loss


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
