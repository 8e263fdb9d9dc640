import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.training.alignment.enumerable import (
    PROMPTS,
    RESPONSES,
    enumerable_lm,
    law,
    optimum,
    reward_of_each,
    total_variation,
)
from tests.training.alignment.material import StopAt, write_rankings
from tests.training.alignment.processes import run_by_two
from training.alignment import dpo
from training.alignment.__main__ import run
from training.alignment.config import ConfigError, DpoConfig, RejectionSamplingConfig
from training.alignment.dpo import Item, Loss, fine_tune_on_pairs, preference_loss, train_dpo
from training.alignment.implicit_reward import encode_answer, summed_logprobs
from training.alignment.policies import is_adapter, load_policy
from training.alignment.preferences import pairs, read_rankings
from training.alignment.run_dir import Interrupted, RunDir, StopFlag

PAIR = torch.tensor([[0, 1]])
LOSSES = [
    {"loss": "sigmoid"},
    {"loss": "robust", "flip_rate": 0.2},
    {"loss": "ipo"},
    {"lists": "plackett_luce"},
]


# The loss


@pytest.mark.parametrize(
    ("options", "start"), [*zip(LOSSES, [math.log(2), math.log(2), 25.0, math.log(2)], strict=True)]
)
def test_a_policy_that_is_its_reference_has_the_loss_of_a_coin(options, start):
    """IPO's is (1 / (2 beta))^2."""
    assert preference_loss(torch.zeros(1, 2), PAIR, beta=0.1, **options).tolist() == pytest.approx([start])


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_a_pair_pulls_by_beta_times_how_wrong_the_policy_is_about_it(beta):
    """The gradient of DPO, equation 7: -beta * sigmoid(-beta * difference of the log-ratios)."""
    log_ratios = torch.tensor([[1.5, -0.5]], dtype=torch.float64, requires_grad=True)

    preference_loss(beta * log_ratios, PAIR).sum().backward()

    pull = beta / (1 + math.exp(beta * 2.0))
    assert log_ratios.grad.tolist() == [pytest.approx([-pull, pull])]


@pytest.mark.parametrize("options", LOSSES)
def test_a_swapped_judgment_pulls_the_other_way(options):
    gradients = []
    for groups in ([[0, 1]], [[1, 0]]):
        rewards = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        preference_loss(rewards, torch.tensor(groups), **options).sum().backward()
        gradients.append(rewards.grad)

    assert torch.equal(gradients[0], -gradients[1])
    assert gradients[0][0, 0] < 0


@pytest.mark.parametrize("options", LOSSES)
def test_what_is_added_to_all_rewards_of_a_prompt_changes_nothing(options):
    """Nor does what the reference policy takes a prompt's responses for by a factor of all."""
    draw = torch.Generator().manual_seed(3)
    groups = [(0, 1), (2, 0, 1), (0, 1, 0)]
    encoded = dpo.Encoded([1, 2], 1, 0)
    reference, logprobs = (torch.randint(-4000, 0, (8,), generator=draw).double() / 1024 for _ in range(2))

    def learned(added: torch.Tensor) -> tuple:
        own = iter((reference + added).tolist())
        items = [Item((encoded,) * len(one), one, 1.0, tuple(next(own) for _ in one)) for one in groups]
        asked = logprobs.clone().requires_grad_()
        loss, margins, is_ordered = Loss(beta=0.5, **options)(asked, items)
        loss.backward()
        return loss.item(), asked.grad.tolist(), margins[is_ordered].tolist()

    found = learned(torch.zeros(8))
    shifted = learned(torch.tensor([700.0] * 2 + [-90.0] * 3 + [4.0] * 3))

    if options.get("lists") == "plackett_luce":  # sums of exponentials are rounded
        assert shifted[:2] == (pytest.approx(found[0], abs=1e-9), pytest.approx(found[1], abs=1e-9))
        assert shifted[2] == found[2]
    else:
        assert shifted == found


@pytest.mark.parametrize("options", LOSSES)
@pytest.mark.parametrize("groups", [[[0, 1, 2], [2, 0, 1]], [[0, 1, 1], [1, 0, -1]]])
def test_gradients_are_those_of_finite_differences(options, groups):
    rewards = torch.tensor([[0.3, -0.8, 1.1], [0.2, 0.5, -0.4]], dtype=torch.float64, requires_grad=True)

    def loss(values):
        return preference_loss(values, torch.tensor(groups), beta=0.3, **options)

    assert torch.autograd.gradcheck(loss, rewards, atol=1e-6)


def test_of_a_pair_the_likelihoods_of_lists_and_pairs_are_one():
    rewards = torch.tensor([[0.4, -1.2], [2.0, 0.1]])
    groups = torch.tensor([[0, 1], [1, 0]])

    by_pairs, by_lists = (preference_loss(rewards, groups, lists=lists) for lists in ("pairs", "plackett_luce"))

    assert by_pairs.tolist() == pytest.approx([math.log1p(math.exp(-1.6)), math.log1p(math.exp(1.9))])
    assert torch.allclose(by_lists, by_pairs)


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "ipo"])
def test_a_ranking_is_the_mean_of_its_ordered_pairs(loss):
    """Of four responses, two tied and one not ranked, two pairs are ordered."""
    rewards = torch.tensor([[0.4, -1.2, 0.7, 5.0]])
    both = torch.tensor([[0.4, -1.2], [0.7, -1.2]])

    ranking = preference_loss(rewards, torch.tensor([[0, 1, 0, -1]]), loss=loss, flip_rate=0.1)

    alone = preference_loss(both, PAIR.expand(2, 2), loss=loss, flip_rate=0.1)
    assert ranking.tolist() == pytest.approx([alone.mean().item()])


@pytest.mark.parametrize("options", LOSSES)
def test_ties_and_what_was_not_ranked_teach_nothing(options):
    rewards = torch.tensor([[0.4, -1.2, 0.7]], requires_grad=True)
    preference_loss(rewards, torch.tensor([[0, 0, -1]]), **options).sum().backward()
    assert rewards.grad.tolist() == [[0, 0, 0]]

    rewards = torch.tensor([[0.4, -1.2, 0.7]], requires_grad=True)
    preference_loss(rewards, torch.tensor([[0, 1, -1]]), **options).sum().backward()
    assert rewards.grad[0, 2] == 0


def test_ipo_wants_each_pair_to_lead_by_what_its_judges_agree():
    """The log-ratio of a pair that the share p of judges puts so: (p - 1/2) / beta, equation 17 onwards."""
    share, beta = 0.8, 0.25
    lead = torch.tensor(share - 0.5) / beta
    log_ratios = torch.tensor([[lead, 0.0], [lead, 0.0]], requires_grad=True)

    losses = preference_loss(beta * log_ratios, torch.tensor([[0, 1], [1, 0]]), loss="ipo", beta=beta)
    (share * losses[0] + (1 - share) * losses[1]).backward()

    assert log_ratios.grad.sum(0).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_a_judgment_counts_by_its_weight_whatever_the_length_of_its_list():
    encoded = tuple(dpo.Encoded([1, 2], 1, 0) for _ in range(3))
    items = [Item(encoded[:2], (0, 1), 3.0, (-1.0, -2.0)), Item(encoded, (1, 0, 2), 1.0, (-1.0, -1.0, -1.0))]
    logprobs = torch.tensor([-0.5, -2.5, -1.0, 0.0, -3.0])

    loss, margins, is_ordered = Loss(beta=0.5, mean_weight=2.0)(logprobs, items)

    pair = preference_loss(0.5 * torch.tensor([[0.5, -0.5]]), PAIR)
    three = preference_loss(0.5 * torch.tensor([[0.0, 1.0, -2.0]]), torch.tensor([[1, 0, 2]]))
    assert loss.item() == pytest.approx((3 * pair + three).item() / 2 / 2)
    assert margins[is_ordered].tolist() == pytest.approx([0.5, 0.5, 1.0, 1.5])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # TRL's own, of transformers 4
def test_a_pair_has_the_loss_of_trls_trainer(llama_folder, tmp_path):
    """Sums over the response's tokens and its end, the prompt's not counted, the reference policy without gradients."""
    judged = [("How do I boil eggs?", "Put the eggs into boiling water.", "No."), ("Rice?", "Twelve minutes", "I do")]
    rows = [
        {name: [{"role": role, "content": text}] for name, role, text in zip(names, roles, row, strict=True)}
        for row in judged
        for names, roles in [(("prompt", "chosen", "rejected"), ("user", "assistant", "assistant"))]
    ]
    torch.manual_seed(0)
    policy, tokenizer = load_policy(llama_folder)
    reference, _ = load_policy(llama_folder)
    for weight in policy.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    items = []
    for prompt, *responses in judged:
        encoded = [encode_answer(tokenizer, [{"role": "user", "content": prompt}], one, 256) for one in responses]
        items.append(Item(tuple(encoded), (0, 1), 1.0, tuple(summed_logprobs(reference, encoded).tolist())))
    logprobs = summed_logprobs(policy, [one for item in items for one in item.encoded])
    trl = DPOTrainer(
        policy,
        reference,
        args=DPOConfig(output_dir=str(tmp_path), beta=0.3, use_cpu=True, bf16=False, activation_checkpointing=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = trl.data_collator(list(trl.train_dataset))

    ours, margins, _ = Loss(beta=0.3)(logprobs, items)

    assert ours.item() == pytest.approx(trl.compute_loss(policy, batch).item(), abs=1e-5)
    assert margins.abs().min() > 0.01


# Where it lands


@pytest.fixture(scope="module")
def enumerable(tmp_path_factory) -> Path:
    return enumerable_lm(tmp_path_factory.mktemp("enumerable"), seed=1)


def landed(folder: Path, rewards: torch.Tensor, *, beta: float, flips: float = 0.0, **options):
    """The policy that minimises the loss over pairs of responses, weighted by how often they are judged so.

    Each response is paired with every seventeenth one, which connects them all: more pairs have the same optimum.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = PROMPTS[0]
    encoded = [encode_answer(tokenizer, prompt, text, 64) for text in RESPONSES]
    reference = summed_logprobs(model, encoded).detach()
    better, worse = torch.cartesian_prod(*(torch.arange(0, len(RESPONSES), by) for by in (1, 17))).T
    share = torch.sigmoid(rewards[better] - rewards[worse])
    share = (1 - flips) * share + flips * (1 - share)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=110, history_size=50, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        implied = beta * (summed_logprobs(model, encoded) - reference)
        pairs = torch.stack([implied[better], implied[worse]], 1)
        groups = PAIR.expand(len(pairs), 2)
        won, lost = (preference_loss(pairs, order, beta=beta, **options) for order in (groups, groups.flip(1)))
        loss = (share * won + (1 - share) * lost).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = summed_logprobs(model, encoded).detach()
    return law(model, tokenizer, prompt), reference.exp(), beta * (found - reference)


def more_of_a(text: str) -> float:
    return 0.7 * text.count("a") - 0.4 * text.count("b") + (0.5 if text.startswith("c") else 0.0)


def test_infinitely_many_judgments_land_on_the_optimum_of_their_reward(enumerable):
    rewards, beta = reward_of_each(more_of_a), 0.5

    policy, reference, implied = landed(enumerable, rewards, beta=beta)

    assert total_variation(policy, optimum(reference, rewards, beta)) < 0.001
    assert total_variation(policy, reference) > 0.3
    difference = implied - rewards
    assert (difference - difference.mean()).abs().max() < 0.01  # the reward, up to a constant


def test_with_a_quarter_of_the_judgments_wrong_the_robust_loss_lands_where_the_plain_one_does_not(enumerable):
    rewards, beta = reward_of_each(more_of_a), 0.5

    plain, reference, _ = landed(enumerable, rewards, beta=beta, flips=0.25)
    robust, _, _ = landed(enumerable, rewards, beta=beta, flips=0.25, loss="robust", flip_rate=0.25)

    best = optimum(reference, rewards, beta)
    assert total_variation(plain, best) > 0.1
    assert total_variation(robust, best) < 0.001


# Runs


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preferences") / "preferences.jsonl"
    return write_rankings(path, num_train=20, num_validation=2, num_test=12)


@pytest.fixture
def prepare(tmp_path, llama_folder, preferences, reward_model_folder):
    def prepare(name: str = "run", **values) -> tuple[DpoConfig, RunDir]:
        settings = {
            "preferences": str(preferences),
            "policy": str(llama_folder),
            "held_out_reward_model": str(reward_model_folder),
            "num_epochs": 2.0,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "check_steps": 2,
            "num_held_out_prompts": 4,
            "num_checked": 2,
            "max_new_tokens": 6,
            "guard": "alarm",
            "precision": "fp32",
        }
        config = DpoConfig(**settings | values)
        return config, RunDir.create(tmp_path / name, config)

    return prepare


def metrics(run_dir: RunDir, phase: str = "train") -> list[dict]:
    lines = [line for line in run_dir.read_metrics() if line["phase"] == phase]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def checks(run_dir: RunDir) -> list[dict]:
    lines = map(json.loads, (run_dir.path / "checks.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def weights(run_dir: RunDir) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(run_dir.model / "model.safetensors").items()}


def test_the_program_trains_a_policy_that_orders_responses_as_people_did(prepare):
    config, run_dir = prepare(num_epochs=5.0)

    assert run(run_dir, StopFlag()) == 0

    result = run_dir.read_result()
    lines, seen = metrics(run_dir), checks(run_dir)
    decided = sum(ranked.is_decided for ranked in read_rankings(Path(config.preferences), "train"))
    told = {
        "model": "model",
        "loss": lines[-1]["loss"],
        "num_rankings": decided,
        "num_tied_rankings": 20 - decided,
        "num_steps": len(lines),
        "num_truncated": 0,
        "saved_step": len(lines),
        "stopped_by": None,
        "num_checks": len(seen),
        "num_held_out_prompts": 4,
        "num_held_out_responses": 2,
        "held_out_votes": "given",
        "kl": seen[-1]["kl"],
        "reward_before": 0.0,
    }
    assert {name: result[name] for name in told} == told
    assert lines[0] == {
        "step": 1,
        "phase": "train",
        "progress": pytest.approx(0.98 / len(lines)),
        "loss": pytest.approx(math.log(2)),
        "learning_rate": 0.0,
        "accuracy": pytest.approx(0.0),
        "margin": pytest.approx(0.0),
    }
    assert lines[-1]["loss"] < 0.62 < lines[0]["loss"]
    assert lines[-1]["accuracy"] == 1.0
    assert result["accuracy"] > 0.9
    assert [one["step"] for one in seen] == sorted({*range(0, len(lines), 2), len(lines)})
    assert (seen[0]["kl"], seen[0]["reward"]) == (0.0, 0.0)
    assert seen[-1]["kl"] > 0.001
    assert result["reward_gain"] == pytest.approx(seen[-1]["reward"])
    samples = [(run_dir.path / f"samples_{when}.jsonl").read_text().splitlines() for when in ("before", "after")]
    assert [len(one) for one in samples] == [8, 8]
    card = (run_dir.model / "README.md").read_text()
    assert "trained by direct preference optimisation: from judgments, without a reward model." in card
    assert load_policy(run_dir.path / "best")[1].chat_template


def test_a_run_that_was_stopped_goes_on_to_the_same_policy_metrics_and_checks(prepare):
    config, straight = prepare("straight")
    expected = train_dpo(config, straight, StopFlag())

    _, stopped = prepare("stopped")
    for n in (1, 3, 2):  # before the first step, after the second and the third
        with pytest.raises(Interrupted):
            train_dpo(config, stopped, StopAt(n))
    result = train_dpo(config, stopped, StopFlag())

    assert result == expected
    assert metrics(stopped) == metrics(straight)
    assert checks(stopped) == checks(straight)
    assert weights(stopped) == weights(straight)


@pytest.mark.parametrize(
    "values",
    [
        {"lists": "plackett_luce", "lora_rank": 2},
        {"loss": "robust", "lora_rank": 2, "saved": "adapter", "gradient_checkpointing": True},
        {"loss": "ipo", "precision": "bf16"},
    ],
)
def test_every_loss_trains_with_adapters_or_without(prepare, values):
    config, run_dir = prepare(**values)

    result = train_dpo(config, run_dir, StopFlag())

    lines = metrics(run_dir)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert is_adapter(run_dir.model) == (values.get("saved") == "adapter")
    _, tokenizer = load_policy(run_dir.model)
    assert tokenizer.chat_template
    assert result["accuracy"] is not None
    assert checks(run_dir)[0]["kl"] == 0.0


def test_adapters_are_held_to_the_policy_without_them(prepare):
    """So without a second model in memory they learn what they learn beside one."""
    values = {"lora_rank": 2, "learning_rate": 1e-2}
    config, shared = prepare("shared", **values)
    train_dpo(config, shared, StopFlag())
    config, separate = prepare("separate", reference_policy=config.policy, **values)
    train_dpo(config, separate, StopFlag())

    assert weights(shared) == weights(separate)
    assert [one["kl"] for one in checks(shared)] == pytest.approx([one["kl"] for one in checks(separate)], abs=1e-6)
    assert checks(shared)[-1]["kl"] > 0.01


def test_a_policy_is_held_to_another_one_where_that_is_told(prepare, llama_folder, tmp_path):
    model, tokenizer = load_policy(llama_folder)
    for weight in model.parameters():
        weight.data.mul_(1.05)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "other")
    config, run_dir = prepare(reference_policy=str(tmp_path / "other"))

    train_dpo(config, run_dir, StopFlag())

    assert metrics(run_dir)[0]["loss"] != pytest.approx(math.log(2), abs=1e-5)
    assert checks(run_dir)[0]["kl"] > 0


def test_a_run_that_overoptimises_ends_and_keeps_its_best_policy(prepare, preferences, tmp_path):
    """Judgments against the held-out reward: as the policy learns them, that one falls."""
    opposed = tmp_path / "opposed.jsonl"
    rows = [json.loads(line) for line in preferences.read_text().splitlines()]
    opposed.write_text("".join(json.dumps(row | {"ranking": row["ranking"][::-1]}) + "\n" for row in rows))
    values = {"preferences": str(opposed), "num_epochs": 30.0, "learning_rate": 1e-2, "num_checked": 8, "patience": 1}
    config, run_dir = prepare(guard="stop", num_held_out_prompts=6, **values)

    result = train_dpo(config, run_dir, StopFlag())

    alarm = json.loads((run_dir.path / "alarm.json").read_text())
    assert result["stopped_by"] == alarm["reason"]
    assert result["num_steps"] == alarm["step"] < 75
    assert result["saved_step"] == result["best_step"] == alarm["best_step"] < alarm["step"]
    best = max(checks(run_dir), key=lambda one: one["held_out"])
    assert result["held_out_reward_after"] == pytest.approx(best["held_out"])
    assert weights(run_dir) == {
        name: tensor.tolist() for name, tensor in load_file(run_dir.path / "best" / "model.safetensors").items()
    }
    assert "stopped early, as" in (run_dir.model / "README.md").read_text()


def test_accumulated_rankings_are_one_step(prepare, monkeypatch):
    config, at_once = prepare("at_once")
    train_dpo(config, at_once, StopFlag())
    config, in_parts = prepare("in_parts")
    monkeypatch.setattr(dpo, "MAX_TOKENS", 300)
    train_dpo(config, in_parts, StopFlag())

    for one, other in zip(metrics(at_once), metrics(in_parts), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_pairs_of_a_run_of_rejection_sampling_are_learned_from(llama_folder, preferences, tmp_path):
    found = [pair for ranked in read_rankings(preferences, "train") for pair in pairs(ranked)][:12]
    config = RejectionSamplingConfig(policy=str(llama_folder), batch_size=4, learning_rate=1e-3, num_epochs=3.0)
    told = {"policy": str(llama_folder), "pairs": found}
    straight, stopped = (RunDir.create(tmp_path / name, config) for name in ("straight", "stopped"))

    result = fine_tune_on_pairs(config, run_dir=straight, stop=StopFlag(), **told)
    with pytest.raises(Interrupted):
        fine_tune_on_pairs(config, run_dir=stopped, stop=StopAt(5), **told)

    assert result == {
        "model": "model",
        "loss": result["loss"],
        "num_rankings": 12,
        "num_steps": 9,
        "num_truncated": 0,
    }
    assert result["loss"] < 0.67
    assert fine_tune_on_pairs(config, run_dir=stopped, stop=StopFlag(), **told) == result
    assert weights(stopped) == weights(straight)
    assert (straight.model / "README.md").exists()


def test_without_judgments_there_is_nothing_to_learn(prepare, tmp_path):
    config, run_dir = prepare(aspect="tone")
    with pytest.raises(ConfigError, match="preferences: no training ranking of tone puts one response above another"):
        train_dpo(config, run_dir, StopFlag())
    settings = RejectionSamplingConfig(policy=config.policy)
    with pytest.raises(ConfigError, match="pairs: there are none to learn from"):
        fine_tune_on_pairs(settings, policy=config.policy, pairs=[], run_dir=run_dir, stop=StopFlag())


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "lora_rank"), [("none", 2), ("fsdp", 0)])
def test_two_processes_learn_what_one_does_and_go_on_where_they_stopped(prepare, sharding, lora_rank):
    """Interrupted after some steps, and taken up again: what each process held a part of comes back."""
    values = {"num_epochs": 4.0, "lora_rank": lora_rank, "check_steps": 4}
    _, one = prepare("one", **values)
    _, two = prepare("two", num_processes=2, sharding=sharding, **values)

    assert run(one, StopFlag()) == 0
    assert run_by_two(two, stop_at=5) != 0
    assert two.read_result() is None
    assert two.checkpoints()
    assert run_by_two(two) == 0

    assert [line["loss"] for line in metrics(two)] == pytest.approx([line["loss"] for line in metrics(one)], abs=1e-3)
    assert [line["kl"] for line in checks(two)] == pytest.approx([line["kl"] for line in checks(one)], abs=1e-3)
    for name in ("num_steps", "saved_step", "num_rankings", "num_pairs"):
        assert two.read_result()[name] == one.read_result()[name]
    assert two.read_result()["accuracy"] == pytest.approx(one.read_result()["accuracy"], abs=0.05)
