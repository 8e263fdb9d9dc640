"""The model card of a reward model: what it is, what it learned from, what it is worth, and what to beware of.

Written by the program from what it measured; `from_pretrained` leaves it alone, and model hubs show it.
"""

import math
from collections.abc import Collection
from typing import Any

from training.alignment.config import RewardModelConfig
from training.alignment.run_dir import name_to_show

BY_ANNOTATOR = {"temperatures", "flip_rates"}
FIGURES = {
    "accuracy": "Pairwise accuracy",
    "kendall_tau": "Kendall's tau-b",
    "top_1": "Best response found",
    "log_loss": "Log-loss (nats)",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}


def model_card(config: RewardModelConfig, result: dict[str, Any], report: dict[str, Any], digest: str) -> str:
    """Markdown with the metadata that model hubs read.

    Args:
        result: of the training run.
        report: of the test split, see `evaluation.report`.
        digest: SHA-256 of the preference set.
    """
    sections = [
        _metadata(),
        _what(config),
        _use(result),
        _data(config, result, digest),
        _worth(report),
        _beware(report, result.get("learned", {}).get("nats_per_doubling_of_length", {})),
        _training(config, result),
    ]
    return "\n".join(sections)


def _metadata() -> str:
    return "\n".join(
        ["---", "library_name: transformers", "pipeline_tag: text-classification", "tags:", "- reward-model", "---", ""]
    )


def _what(config: RewardModelConfig) -> str:
    heads = "one output" if len(config.aspects) == 1 else "an output each for " + ", ".join(config.aspects)
    return (
        "# Reward model\n\n"
        f"Scores a response to a prompt: the higher, the more people would prefer it. A sequence classifier with "
        f"{heads}, read at the end of the conversation as the tokenizer's chat template renders it, trained on "
        "people's rankings of responses.\n"
    )


def _use(result: dict[str, Any]) -> str:
    uncalibrated = (
        " The temperature was not fitted, as the validation split orders nothing: these odds are as training left them."
    )
    return (
        "## Use\n\n"
        "Meant for ranking responses to one prompt, for choosing the best of several, and as the reward of a policy "
        "that is held close to a reference. A reward says what annotators of this data would prefer, not what is true, "
        "safe or good; a policy that is optimised against it alone will find where the two part.\n\n"
        "```python\n"
        "import torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = AutoModelForSequenceClassification.from_pretrained("FOLDER")\n'
        'chat = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]\n'
        'inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)\n'
        "raw = model(**inputs).logits[0]\n"
        "```\n\n"
        "Only differences of raw rewards for the same prompt mean something: (raw - raw') / `reward_temperature` are "
        "the log-odds that the first is preferred. (raw - `reward_mean`) / `reward_std` has mean 0 and deviation 1 on "
        "the reference set. All three stand in config.json, a number for each output."
        f"{'' if result.get('temperature') else uncalibrated}\n"
    )


def _data(config: RewardModelConfig, result: dict[str, Any], digest: str) -> str:
    return (
        "## Training data\n\n"
        f"- preference set: SHA-256 `{digest}`\n"
        f"- judged by aspect: {config.aspect}\n"
        f"- training rankings: {result['num_train_rankings']}; {result['num_tied_rankings']} more order nothing, "
        f"{result['num_too_long']} are too long\n"
        f"- responses whose prompt was shortened to {config.max_length} tokens: {result['num_truncated']}\n"
        f"- prompts of the training split that are in validation or test too: {result['num_shared_prompts']}\n"
    )


def _worth(report: dict[str, Any]) -> str:
    lines = [
        f"| {label} | {_figure(figure)} |"
        for name, label in FIGURES.items()
        if (figure := report.get("figures", {}).get(name))
    ]
    if longer := (report.get("length") or {}).get("longer_wins"):
        lines.append(f"| Pairwise accuracy of preferring the longer one | {_figure(longer)} |")
    if one_out := (report.get("ceiling") or {}).get("leave_one_out"):
        lines.append(f"| Agreement of an annotator with the others | {_figure(one_out)} |")
    if not lines:
        return "## Held-out figures\n\nNone: the test split orders no responses.\n"
    told = f"{report['num_pairs']} ordered pairs of {report['num_prompts']} prompts; intervals (95 %) are by prompt"
    return "\n".join(["## Held-out figures\n", f"{told}.\n", "| | |", "|---|---|", *lines, ""])


def _beware(report: dict[str, Any], nats_per_doubling: dict[str, float]) -> str:
    length = report.get("length") or {}
    lines = ["## Biases and limits\n"]
    lines += [
        f"- Length is left out of the rewards. In the judgments{_of(aspect, nats_per_doubling)} it counted by itself "
        f"for {nats:.2g} nats of log-odds ({math.exp(nats):.2g} to 1) in favour of a response twice as long; where "
        "longer ones were truly better, that is in this figure too."
        for aspect, nats in nats_per_doubling.items()
    ]
    if correlation := length.get("correlation"):
        lines.append(
            f"- Length: within a prompt, rewards and lengths correlate by {_figure(correlation)}"
            + (
                f", given the human label by {_figure(partial)}"
                if (partial := length.get("partial_correlation"))
                else ""
            )
            + "."
        )
    if shorter := length.get("accuracy_shorter_preferred"):
        lines.append(f"- Where people preferred the shorter response it agrees with them in {_figure(shorter)}.")
    lines += [
        "- It repeats its annotators' preferences and errors, and knows only prompts like theirs.",
        "- It has seen none of the texts that a policy trained on it will come to write.",
        "",
    ]
    return "\n".join(lines)


def _of(aspect: str, several: Collection[str]) -> str:
    return f" of {aspect}" if len(several) > 1 else ""


def _training(config: RewardModelConfig, result: dict[str, Any]) -> str:
    told = {
        "from": f"`{name_to_show(config.backbone)}`",
        "loss": config.loss,
        "ties": config.ties,
        "steps": result["num_steps"],
        "batch size": config.batch_size,
        "peak learning rate": f"{config.learning_rate:g}",
        "adapters of rank": config.lora_rank or "none, all weights",
        "seed": config.seed,
        **{
            f"learned {name.replace('_', ' ')}": _plain(name, value)
            for name, value in result.get("learned", {}).items()
        },
    }
    return "\n".join(["## Training\n", *(f"- {name}: {value}" for name, value in told.items()), ""])


def _figure(figure: dict[str, Any]) -> str:
    interval = figure["interval"]
    return f"{figure['value']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _plain(name: str, value: Any) -> str:
    if name in BY_ANNOTATOR and value:
        return f"{min(value.values()):.3g} to {max(value.values()):.3g} over {len(value)} annotators"
    if isinstance(value, dict):
        return ", ".join(f"{one:.3g} for {key}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
