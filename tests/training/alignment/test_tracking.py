import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.training.alignment.enumerable import MAX_NEW_TOKENS, PROMPTS, RESPONSES, enumerable_lm, law
from tests.training.alignment.processes import start_two, wait
from training.alignment.config import ConfigError, DpoConfig, RlhfConfig
from training.alignment.generation import Generated
from training.alignment.guard import Alarm, Check
from training.alignment.held_out_reward import HeldOut
from training.alignment.policies import load_policy, prepare, save_policy
from training.alignment.preferences import encode, encode_prompt
from training.alignment.reward import Scored
from training.alignment.reward_model import join_processes
from training.alignment.run_dir import RunDir
from training.alignment.tracking import Tracker, divergences, held_out_prompts, read_checks


class Rule:
    """A reward by rule whose grades can be moved."""

    digest, aspects, is_listwise = "0" * 64, ("overall",), False

    def __init__(self, rule, offset: float = 0.0) -> None:
        self.rule, self.offset, self.num_asked = rule, offset, 0

    def score_prompts(self, prompts, aspect=None) -> list[Scored]:
        self.num_asked += 1
        return [Scored([self.rule(text) + self.offset for text in one.responses]) for one in prompts]

    def log_odds(self, aspect=None) -> float:
        return 1.0


def proxy(prompts) -> list[list[float]]:
    return [[float(len(text)) for text in one.responses] for one in prompts]


def shortness() -> Rule:
    return Rule(lambda text: -float(len(text)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    return enumerable_lm(tmp_path_factory.mktemp("reference"), seed=0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Another one, with its tokenizer."""
    return load_policy(enumerable_lm(tmp_path_factory.mktemp("policy"), seed=1))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return join_processes()


@pytest.fixture
def track(tmp_path, accelerator, reference):
    def make(**values) -> Tracker:
        own = {name: values.pop(name) for name in ("held_out", "proxy", "reference", "prompts") if name in values}
        settings = {"num_checked": 8, "max_new_tokens": MAX_NEW_TOKENS, "max_length": 64, "generation_batch_size": 16}
        config = RlhfConfig(**settings | values)
        given = {
            "reference": reference,
            "prompts": PROMPTS,
            "proxy": proxy,
            "held_out": HeldOut((shortness(),), "given"),
        } | own
        return Tracker(config, run_dir=RunDir.create(tmp_path / "run", config), accelerator=accelerator, **given)

    return make


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exact_kl(policy, reference, tokenizer, prompt) -> float:
    own, other = (law(model, tokenizer, prompt).double() for model in (policy, reference))
    return (own * (own / other).log()).sum().item()


def test_divergence_averages_to_the_exact_kl_and_entropy(policy, reference):
    model, tokenizer = policy
    other, _ = load_policy(reference)
    pairs = []
    for text in RESPONSES:
        encoded = encode(tokenizer, PROMPTS[0], text, 512)
        ids = encoded.ids[encoded.num_prompt_tokens :]
        end = ids.index(tokenizer.eos_token_id)
        pairs.append((encoded.ids[: encoded.num_prompt_tokens], Generated(ids[:end], is_ended=True)))

    found = divergences(model, other, pairs)

    probabilities = law(model, tokenizer, PROMPTS[0]).double()
    kl = sum(p * one.kl for p, one in zip(probabilities.tolist(), found, strict=True))
    entropy = sum(p * one.entropy for p, one in zip(probabilities.tolist(), found, strict=True))
    assert kl == pytest.approx(exact_kl(model, other, tokenizer, PROMPTS[0]), abs=1e-5)
    assert entropy == pytest.approx(-(probabilities * probabilities.log()).sum().item(), abs=1e-5)
    assert [one.num_tokens for one in found] == [len(text) + 1 for text in RESPONSES]
    assert min(one.kl for one in found) >= 0


@pytest.mark.parametrize("broken", ["policy", "reference"])
def test_weights_that_are_no_numbers_are_told_and_not_measured(policy, reference, broken):
    model, tokenizer = policy
    other, lame = load_policy(reference)[0], load_policy(reference)[0]
    for weight in lame.parameters():
        weight.data.fill_(torch.nan)
    pair = (
        encode_prompt(tokenizer, PROMPTS[1], 64),
        Generated(tokenizer("ab", add_special_tokens=False)["input_ids"], True),
    )

    with pytest.raises(FloatingPointError, match="a response's KL is nan"):
        divergences(*((lame, other) if broken == "policy" else (model, lame)), [pair])


def test_response_that_was_cut_off_has_no_place_for_its_end(policy, reference):
    model, tokenizer = policy
    other, _ = load_policy(reference)
    prompt = encode_prompt(tokenizer, PROMPTS[1], 64)
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    whole, cut = (Generated(ids, is_ended) for is_ended in (True, False))

    (ended, ended_kl), (short, short_kl) = (
        (one.num_tokens, one.kl) for one in divergences(model, other, [(prompt, whole), (prompt, cut)])
    )

    assert (ended, short) == (3, 2)
    assert 0 < short_kl < ended_kl


def test_divergence_is_the_same_in_batches_of_any_size(policy, reference):
    model, tokenizer = policy
    other, _ = load_policy(reference)
    prompts = [encode_prompt(tokenizer, prompt, 64) for prompt in PROMPTS]
    pairs = [
        (prompts[number % 4], Generated(tokenizer(text, add_special_tokens=False)["input_ids"], True))
        for number, text in enumerate(("", "a", "abcd", "cc", "dab"))
    ]

    assert divergences(model, other, pairs, max_tokens=1) == pytest.approx(divergences(model, other, pairs))


def test_divergence_leaves_out_logits_of_no_token(policy, reference):
    """Models of different sizes fill up the same vocabulary differently."""
    model, tokenizer = policy
    other, _ = load_policy(reference)
    pairs = [(encode_prompt(tokenizer, PROMPTS[0], 64), Generated(tokenizer("ab")["input_ids"], is_ended=True))]
    expected = divergences(model, other, pairs)

    def add_logits(module, inputs, output):
        output.logits = torch.nn.functional.pad(output.logits, (0, 5))

    other.register_forward_hook(add_logits)

    assert divergences(model, other, pairs) == pytest.approx(expected)


def test_policy_that_is_the_reference_has_no_kl(track, reference):
    tracker = track()

    raised = tracker.check(0, *load_policy(reference))

    found = tracker.checks[0]
    rows = read(tracker.run_dir.path / "samples" / "step-000000.jsonl")
    lengths = [len(row["response"]) for row in rows]
    assert raised is None
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(8)]
    assert [(row["reward"], row["held_out_reward"]) for row in rows] == [(n, -n) for n in lengths]
    assert (
        found
        == Check(
            step=0,
            reward=pytest.approx(sum(lengths) / 32),
            held_out=pytest.approx(-sum(lengths) / 32),
            kl=0.0,
            kl_interval=(0.0, 0.0),
            length=pytest.approx(sum(lengths) / 32 + 1),  # and the end
            entropy=found.entropy,
            repetition=0.0,
            diversity=0.0,  # one word a response
            ended=1.0,
            reward_by_prompt=tuple(sum(lengths[start : start + 8]) / 8 for start in range(0, 32, 8)),
            held_out_by_prompt=tuple(-sum(lengths[start : start + 8]) / 8 for start in range(0, 32, 8)),
        )
    )
    assert 0.5 < found.entropy < 1.61  # no more than that of five symbols alike
    assert (tracker.best_step, tracker.alarm) == (0, None)


def test_kl_of_another_policy_is_estimated_well(track, policy, reference):
    tracker = track(num_checked=64)
    tracker.check(0, *load_policy(reference))

    tracker.check(20, *policy)

    model, tokenizer = policy
    other, _ = load_policy(reference)
    exact = sum(exact_kl(model, other, tokenizer, prompt) for prompt in PROMPTS) / 4
    found = tracker.checks[1]
    assert found.kl == pytest.approx(exact, rel=0.1)
    assert found.kl_interval[0] < exact < found.kl_interval[1]
    gains = [new - old for old, new in zip(tracker.checks[0].reward_by_prompt, found.reward_by_prompt, strict=True)]
    deviation = torch.tensor(gains).double().std().item()
    half = 3.182446 * deviation / 2  # Student's at 3 degrees of freedom, of four prompts
    assert found.reward_interval == pytest.approx((found.reward - half, found.reward + half), abs=1e-6)
    assert found.held_out_interval == pytest.approx((found.held_out - half, found.held_out + half), abs=1e-6)


def test_kl_is_that_at_temperature_1_however_the_run_samples(track, policy):
    tracker = track(temperature=0.2, top_p=0.5)
    tracker.check(0, *policy)
    plain = track()
    plain.run_dir.path.joinpath("checks.jsonl").unlink()
    plain = track()

    plain.check(0, *policy)

    assert tracker.checks[0].kl == plain.checks[0].kl
    assert tracker.checks[0].entropy == plain.checks[0].entropy
    assert tracker.checks[0].reward_by_prompt != plain.checks[0].reward_by_prompt


def test_adapters_are_measured_against_the_model_without_them(track, llama_folder, policy):
    config = DpoConfig(lora_rank=4, max_new_tokens=8, max_length=64, num_checked=2, generation_batch_size=4)
    model, tokenizer = load_policy(llama_folder)
    adapted = prepare(model, config)
    tracker = track(reference=(adapted, tokenizer), max_new_tokens=8)
    tracker.check(0, adapted, tokenizer)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))

    tracker.check(1, adapted, tokenizer)

    whole = track(reference=llama_folder, max_new_tokens=8)
    whole.run_dir.path.joinpath("checks.jsonl").unlink()
    whole = track(reference=llama_folder, max_new_tokens=8)
    whole.check(1, adapted, tokenizer)
    assert tracker.checks[0].kl == 0.0
    assert tracker.checks[1].kl > 0.01
    assert tracker.checks[1].kl == pytest.approx(whole.checks[0].kl, rel=1e-4)


def test_check_leaves_modes_and_random_generators_as_they_were(track, llama_folder):
    model, tokenizer = load_policy(llama_folder)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    track(reference=llama_folder, max_new_tokens=8).check(0, model, tokenizer)

    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()  # nothing of inference mode is left


def test_same_policy_is_answered_alike_at_every_check_whatever_the_batch(track, policy):
    tracker = track()
    tracker.check(0, *policy)
    tracker.check(5, *policy)
    one_by_one = track(generation_batch_size=1)
    assert len(one_by_one.checks) == 2

    one_by_one.check(9, *policy)

    assert tracker.checks[1] == replace(
        tracker.checks[0],
        step=5,
        reward_interval=(tracker.checks[0].reward,) * 2,
        held_out_interval=(tracker.checks[0].held_out,) * 2,
    )
    assert one_by_one.checks[2].reward_by_prompt == tracker.checks[0].reward_by_prompt
    assert one_by_one.checks[2].kl == pytest.approx(tracker.checks[0].kl, abs=1e-6)


def test_resumed_it_does_no_check_again(track, policy):
    first = track()
    first.check(0, *policy)
    first.check(20, *policy)
    with (first.run_dir.path / "checks.jsonl").open("a") as file:
        file.write('{"step": 40, "rew')  # killed while it was written

    resumed = track()

    assert resumed.check(20, None, None) is None
    assert resumed.checks == first.checks == list(read_checks(first.run_dir))
    with pytest.raises(ValueError, match="step 10 comes before step 20"):
        resumed.check(10, *policy)
    resumed.check(40, *policy)
    assert [row["step"] for row in read(resumed.run_dir.path / "checks.jsonl")] == [0, 20, 40]


def raise_alarm(track, policy, **values) -> Tracker:
    """Four checks whose held-out reward falls while the other rises."""
    grade = shortness()
    offset = count()
    tracker = track(
        held_out=HeldOut((grade,), "given"),
        proxy=lambda prompts: [[next(offset) + 0.0 for _ in one.responses] for one in prompts],
        **values,
    )
    for step in range(0, 80, 20):
        if tracker.check(step, *policy):
            break
        grade.offset -= 1.0
    return tracker


def test_alarm_is_raised_written_and_found_again(track, policy):
    tracker = raise_alarm(track, policy)

    alarm = tracker.alarm
    path = tracker.run_dir.path / "alarm.json"
    assert alarm == Alarm(60, "held_out_falls", 0, alarm.words)
    assert json.loads(path.read_text(encoding="utf-8")) == alarm.to_dict()
    path.unlink()  # killed between the check and the alarm
    resumed = track()
    assert (resumed.alarm, resumed.check(60, None, None), resumed.check(40, None, None)) == (alarm, alarm, None)
    assert resumed.check(80, *policy) == alarm  # of a run that was killed before it could end
    assert json.loads(path.read_text(encoding="utf-8")) == alarm.to_dict()


def test_guard_that_is_off_raises_nothing(track, policy):
    tracker = raise_alarm(track, policy, guard="off")

    assert (tracker.alarm, len(tracker.checks)) == (None, 4)
    assert not (tracker.run_dir.path / "alarm.json").exists()


def test_result_tells_what_was_gained_by_the_saved_policy(track, policy, reference):
    held_out = HeldOut((shortness(),), "guard", 30, {"value": 0.7, "interval": [0.6, 0.8]}, note="Take care.")
    tracker = track(held_out=held_out)
    tracker.check(0, *load_policy(reference))
    tracker.check(20, *policy)

    found = tracker.result(20)

    before, after = tracker.checks
    half = after.reward_interval[1] - after.reward
    gain = after.reward - before.reward
    assert found == {
        "reward_before": before.reward,
        "reward_after": after.reward,
        "reward_gain": pytest.approx(gain),
        "reward_gain_interval": pytest.approx([gain - half, gain + half]),
        "held_out_reward_before": before.held_out,
        "held_out_reward_after": after.held_out,
        "held_out_reward_gain": pytest.approx(-gain),
        "held_out_reward_gain_interval": pytest.approx([-gain - half, -gain + half]),
        "stopped_by": None,
        "kl": after.kl,
        "kl_interval": list(after.kl_interval),
        "best_step": tracker.best_step,
        "num_checks": 2,
        "num_held_out_prompts": 4,
        "num_held_out_responses": 8,
        "held_out_votes": "guard",
        "held_out_num_rankings": 30,
        "held_out_accuracy": 0.7,
        "held_out_accuracy_interval": [0.6, 0.8],
        "held_out_note": "Take care.",
    }
    path = tracker.run_dir.path
    assert read(path / "samples_before.jsonl") == read(path / "samples" / "step-000000.jsonl")
    assert read(path / "samples_after.jsonl") == read(path / "samples" / "step-000020.jsonl")


def test_result_says_what_stopped_the_run(track, policy):
    tracker = raise_alarm(track, policy)

    assert tracker.result(tracker.best_step)["stopped_by"] == "held_out_falls"


def test_spread_is_told_beside_that_on_training_responses(track, policy):
    held_out = HeldOut((shortness(), Rule(lambda text: 4.0 - len(text))), "guard", reference_spread=0.5)
    tracker = track(held_out=held_out)

    tracker.check(0, *policy)

    assert tracker.checks[0].spread == 4.0  # two grades that are 4 apart deviate by 2 from their mean
    assert tracker.checks[0].held_out == pytest.approx(2 - (tracker.checks[0].length - 1))


def test_missing_rewards_are_missing_and_never_zero(track, policy):
    def only_longer(prompts):
        return [[float(len(text)) if len(text) > 2 else float("nan") for text in one.responses] for one in prompts]

    tracker = track(proxy=only_longer)

    tracker.check(0, *policy)

    rows = read(tracker.run_dir.path / "samples" / "step-000000.jsonl")
    missing = [row["reward"] is None for row in rows]
    assert missing == [len(row["response"]) <= 2 for row in rows]
    assert tracker.checks[0].missing == sum(missing) / 32
    assert tracker.checks[0].reward > 2


def test_reward_that_scores_nothing_is_refused(track, policy):
    tracker = track(proxy=lambda prompts: [[float("nan")] * len(one.responses) for one in prompts])

    with pytest.raises(ConfigError, match="reward_model: could score none"):
        tracker.check(0, *policy)
    assert not (tracker.run_dir.path / "checks.jsonl").exists()


def test_a_policy_is_checked_on_test_prompts(tmp_path):
    (tmp_path / "rankings").write_text("")
    with pytest.raises(ConfigError, match="the test split has no prompt to check the policy on"):
        held_out_prompts(RlhfConfig(), tmp_path / "rankings")


def check_twice(reference: Path, policy: Path, folder: Path) -> None:
    config = RlhfConfig(num_checked=8, max_new_tokens=MAX_NEW_TOKENS, max_length=64, generation_batch_size=16)
    own = {"prompts": PROMPTS, "proxy": proxy, "held_out": HeldOut((shortness(),), "given")}
    tracker = Tracker(config, run_dir=RunDir(folder), accelerator=join_processes(), reference=reference, **own)
    for step, path in enumerate((reference, policy)):
        tracker.check(step, *load_policy(path))
    tracker.result(1)


@pytest.mark.slow
def test_two_processes_check_as_one_does(tmp_path, track, reference, policy):
    model, tokenizer = policy
    save_policy(model, tokenizer, tmp_path / "policy")
    alone, together = track(), tmp_path / "together"
    together.mkdir()
    for step, one in enumerate((load_policy(reference), policy)):
        alone.check(step, *one)
    alone.result(1)

    assert wait(start_two(check_twice, reference, tmp_path / "policy", together)) == 0

    assert list(read_checks(RunDir(together))) == alone.checks
    for name in ("samples_before.jsonl", "samples_after.jsonl", "samples/step-000001.jsonl"):
        assert (together / name).read_bytes() == (alone.run_dir.path / name).read_bytes()
