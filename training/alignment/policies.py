"""Policies as folders: how one is loaded, made ready for training, and saved with a card that tells what it is.

A policy is what Hugging Face calls a causal language model, in one of two kinds of folder. Whole: weights and tokenizer
as `save_pretrained` writes them, which any server loads. Adapters: low-rank changes as PEFT writes them, which name the
model that they change; here they are put into that model's weights when they are loaded, so that a policy that was
saved so can be sampled, trained on and compared like any other.

Weights are read from safetensors only, never by running code that comes with them, and held in single precision.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file

from training.alignment.config import ConfigError, DpoConfig, PolicyConfig
from training.alignment.preferences import encode
from training.alignment.products import round_products
from training.alignment.reward import named, placed
from training.alignment.run_dir import name_to_show, replace_folder, require_model, write_json, write_whole
from training.alignment.weights import ADAPTER, WHOLE, classifier_state

ADAPTERS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
TOKENIZER = "tokenizer_config.json"
PROBE_LENGTH = 4096  # tokens; some templates begin with a page of instructions
Policy = PreTrainedModel | PeftModel

# What a card says.
HOW = {
    "sft": "supervised fine-tuning on example responses",
    "rejection_sampling": "fine-tuning on those of its own responses that a reward picked out",
    "rlhf": "reinforcement learning on a reward, held to a reference policy by their KL",
    "dpo": "direct preference optimisation: from judgments, without a reward model",
}
DATA = {
    "num_examples": "examples",
    "num_prompts": "prompts",
    "num_rankings": "rankings",
    "num_truncated": "responses whose prompt was shortened",
}
REWARDS = {"reward": "reward that was optimised", "held_out_reward": "held-out reward, which was not"}
MEASURES = {
    "kl": "KL to the reference policy, nats a response",
    "loss": "training loss",
    "held_out_loss": "loss on held-out examples",
    "accuracy": "accuracy of its implicit reward on held-out judgments",
}
STOPPED = {
    "held_out_falls": "the held-out reward fell while the optimised one rose",
    "spread": "rewards disagreed about its responses more than on the training data",
}
SETTINGS = {
    "algorithm": "algorithm",
    "loss": "loss",
    "beta": "beta",
    "num_samples": "samples of each prompt",
    "learning_rate": "peak learning rate",
    "batch_size": "batch size",
    "num_epochs": "epochs",
}
BEWARE = """## Biases and limits

- It repeats what the people whose judgments or examples it learned from prefer, and their errors.
- What it says was not checked for truth or safety.
- A reward says what annotators would prefer; where a policy has optimised one, it may have found where the two part.
"""


def load_policy(policy: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in single precision and its tokenizer, which pads with its end where it has no padding.

    What it writes ends where its generation settings say, and where its chat template closes a response, which is what
    training teaches: a base model's settings often name another token.

    Args:
        policy: a folder or a Hugging Face id, of a whole model or of adapters.

    Raises:
        ConfigError: adapters are not in safetensors, or what they change is not there.
        OSError: there is no such model.
    """
    model, tokenizer = _load(str(policy))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    told = model.generation_config.eos_token_id
    ends = told if isinstance(told, list) else [end for end in (told, tokenizer.eos_token_id) if end is not None][:1]
    if missing := [end for end in _closing(tokenizer) if end not in ends]:
        model.generation_config.eos_token_id = [*ends, *missing]
    return model, tokenizer


def prepare(model: PreTrainedModel, config: PolicyConfig) -> Policy:
    """The model made ready for training: with low-rank adapters where they are asked for, which alone are trained then.

    They begin as no change at all. The same seed gives the same ones.

    Raises:
        ConfigError: adapters are to be saved by themselves, but would change a model that no folder holds.

    Source: E. J. Hu et al., "LoRA: low-rank adaptation of large language models", 2021.
    """
    prepared: Policy = model
    if config.lora_rank:
        name = str(model.name_or_path)
        if config.saved == "adapter" and is_adapter(name):
            raise ConfigError("saved: the policy to start from is itself an adapter; save this one merged")
        with torch.random.fork_rng(), _of_old_names():
            torch.manual_seed(config.seed)
            prepared = get_peft_model(model, _adapters(model, config, name))
    if not torch.cuda.is_available() and computes_in_bfloat16(config):
        round_products(prepared)
    return prepared


def trainer_arguments(config: PolicyConfig, model: Policy) -> dict[str, Any]:
    """What a trainer of transformers or TRL is told about precision, memory, processes and reports."""
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "use_cpu": not on_gpu,
        "bf16": on_gpu and computes_in_bfloat16(config),  # on a CPU `prepare` has seen to it
        "activation_checkpointing": config.gradient_checkpointing,
        "dataloader_pin_memory": on_gpu,
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # which tells another step's loss in place of one that is no number
        "save_strategy": "no",  # the run directory's checkpoints are written otherwise
        "report_to": "none",
        "disable_tqdm": True,
    }
    if is_sharded(config):
        layers = {type(one).__name__ for one in model.modules() if isinstance(one, GradientCheckpointingLayer)}
        arguments["activation_checkpointing"] = False
        arguments["fsdp"] = True
        arguments["fsdp_config"] = {
            "version": 2,
            "transformer_layer_cls_to_wrap": sorted(layers),
            "activation_checkpointing": config.gradient_checkpointing,  # its own gathers weights once less
        }
    return arguments


def is_sharded(config: PolicyConfig) -> bool:
    """One process alone has nobody to share with, whatever is asked for."""
    return config.sharding == "fsdp" and int(os.environ.get("WORLD_SIZE", "1")) > 1


def computes_in_bfloat16(config: PolicyConfig) -> bool:
    """Whether products are to be in bfloat16; by itself only where the hardware multiplies matrices in it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def save_policy(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    saved: str = "merged",
    card: str = "",
    accelerator: Accelerator | None = None,
) -> None:
    """Write a policy into `folder`, which is replaced as a whole; the model stays as it is.

    Args:
        model: with or without adapters, whole or in shards.
        saved: merged, adapters are added to the weights of what is written; adapter, they alone are written, and name
            what they change by its id, or by its path from `folder`, so that both can be moved together. A model
            without adapters is written whole either way.
        card: Markdown, see `policy_card`.
        accelerator: of several processes, all of which must call; the main one writes.
    """
    model = accelerator.unwrap_model(model) if accelerator else model
    save = _save_adapters(model) if saved == "adapter" and isinstance(model, PeftModel) else _save_whole(model)

    def write(scratch: Path) -> None:
        save(scratch)
        _name_base(scratch, folder)
        tokenizer.save_pretrained(scratch)
        if card:
            write_whole(scratch / "README.md", card)

    if accelerator is None or accelerator.is_main_process:
        replace_folder(folder, write)
    if accelerator:
        accelerator.wait_for_everyone()


def move_policy(folder: Path, place: Path) -> None:
    """Put a policy that was saved in `folder` into another place, where adapters still name what they change."""
    if not is_adapter(folder):
        folder.rename(place)
        return
    base = placed(folder, _base_name(str(folder), folder / ADAPTERS))

    def write(scratch: Path) -> None:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        told = json.loads((scratch / ADAPTERS).read_text(encoding="utf-8"))
        write_json(scratch / ADAPTERS, told | {BASE: named(base, place)})

    replace_folder(place, write)
    shutil.rmtree(folder)


def policy_card(config: PolicyConfig, result: Mapping[str, Any], *, digest: str = "") -> str:
    """The model card of a policy, which `save_policy` puts beside it: Markdown with the metadata that hubs read.

    Args:
        config: of the run that trained it.
        result: as far as it is known; what is not in it is not told.
        digest: SHA-256 of the preference set or of the examples.
    """
    library = "peft" if config.lora_rank and config.saved == "adapter" else "transformers"
    told = "\n".join(
        ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags:", f"- {config.kind}", "---", ""]
    )
    return "\n".join(
        [told, _what(config), _use(library), _data(result, digest), _figures(config, result), BEWARE, _how(config)]
    )


def is_adapter(policy: str | Path) -> bool:
    """Whether a folder or a Hugging Face id is one of adapters."""
    return _file_of(str(policy), ADAPTERS) is not None


def _closing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token that comes last after a response, if any."""
    try:
        closed = encode(tokenizer, [{"role": "user", "content": "?"}], "!", PROBE_LENGTH)
    except ConfigError:  # its template wants another conversation
        return []
    return [token for token in closed.ids[closed.num_prompt_tokens :] if token in tokenizer.all_special_ids][-1:]


def _what(config: PolicyConfig) -> str:
    begun = f", from `{name_to_show(start)}`" if (start := getattr(config, "policy", "")) else ""
    reward = f" The reward is `{name_to_show(name)}`." if (name := getattr(config, "reward_model", "")) else ""
    return f"# Policy\n\nAnswers prompts. A causal language model{begun}, trained by {HOW[config.kind]}.{reward}\n"


def _use(library: str) -> str:
    begin, base, adapters = "", "FOLDER", ""
    if library == "peft":
        begin, base = "from peft import PeftModel\n", "BASE"
        adapters = 'model = PeftModel.from_pretrained(model, "FOLDER")\n'
    return (
        "## Use\n\n"
        "Meant for research on learning from preferences, in the domain of its prompts. Sample from it with the chat "
        "template of its tokenizer.\n\n"
        "```python\n"
        f"{begin}"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{base}")\n'
        f"{adapters}"
        'chat = [{"role": "user", "content": "…"}]\n'
        'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)\n"
        "ids = model.generate(**inputs, do_sample=True, max_new_tokens=256)\n"
        "```\n"
    )


def _data(result: Mapping[str, Any], digest: str) -> str:
    lines = [f"- SHA-256 `{digest}`"] if digest else []
    lines += [f"- {label}: {result[name]}" for name, label in DATA.items() if name in result]
    return "\n".join(["## Training data\n", *(lines or ["- not told"]), ""])


def _figures(config: PolicyConfig, result: Mapping[str, Any]) -> str:
    lines = []
    for name, label in REWARDS.items():
        if f"{name}_gain" in result:
            interval = result[f"{name}_gain_interval"]  # none from one prompt
            around = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
            before, after, gain = (result[f"{name}_{when}"] for when in ("before", "after", "gain"))
            told = "its implicit reward" if name == "reward" and isinstance(config, DpoConfig) else label
            lines.append(f"- {told}: from {before:.3g} to {after:.3g}, gain {gain:.3g}{around}")
    lines += [f"- {label}: {value:.4g}" for name, label in MEASURES.items() if (value := result.get(name)) is not None]
    if reason := result.get("stopped_by"):
        lines.append(f"- stopped early, as {STOPPED[reason]}; this is step {result['best_step']}")
    return "\n".join(["## Figures\n", *(lines or ["- none were measured"]), ""])


def _how(config: PolicyConfig) -> str:
    told = {
        label: value for name, label in SETTINGS.items() if (value := getattr(config, name, None)) not in {None, ""}
    }
    adapters = {"adapters of rank": config.lora_rank or "none, all weights", "seed": config.seed}
    return "\n".join(["## Training\n", *(f"- {name}: {value}" for name, value in {**told, **adapters}.items()), ""])


def _load(policy: str, above: tuple[str, ...] = ()) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Args:
        above: the policies whose adapters change this one.
    """
    require_model(policy)
    told = _file_of(policy, ADAPTERS)
    if told is None:
        whole: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            policy, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        return whole, AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    if _file_of(policy, ADAPTER_WEIGHTS) is None:
        raise ConfigError(f"{policy} holds adapters, but not in {ADAPTER_WEIGHTS}")
    name = _base_name(policy, told)
    here = str(told.parent.resolve())
    if here in above:
        raise ConfigError(f"{policy} holds adapters of themselves")
    try:
        base, tokenizer = _load(placed(told.parent, name), (*above, here))
    except OSError as error:
        raise ConfigError(f"{policy} holds adapters of {name}, which is not there: {error}") from error
    if _file_of(policy, TOKENIZER):
        tokenizer = AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    with _of_old_names():
        model: PreTrainedModel = PeftModel.from_pretrained(base, policy).merge_and_unload()
    model.config._name_or_path = model.name_or_path = policy
    return model, tokenizer


def _base_name(policy: str, told: Path) -> str:
    """What adapters change: a path, which may be one from their folder, or an id."""
    try:
        name = json.loads(told.read_text(encoding="utf-8"))[BASE]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{policy} holds adapters, but {ADAPTERS} is none of PEFT's: {error!r}") from error
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{policy} holds adapters, but does not name what they change")
    return name


def _name_base(scratch: Path, folder: Path) -> None:
    """Name what adapters change, where there are any, as seen from the folder that they come into."""
    path = scratch / ADAPTERS
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, told | {BASE: named(told[BASE], folder)})


def _file_of(policy: str, name: str) -> Path | None:
    """One file of a folder or of a Hugging Face id; nothing where it has none."""
    if Path(policy).is_dir():
        return Path(policy) / name if (Path(policy) / name).is_file() else None
    found = cached_file(
        policy,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _adapters(model: PreTrainedModel, config: PolicyConfig, name: str) -> LoraConfig:
    """Upon all linear layers but the last, which gives the logits."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(Path(name).resolve()) if Path(name).is_dir() else name,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # any number will do
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


@contextmanager
def _of_old_names() -> Iterator[None]:
    """PEFT asks a model for its checkpointing by a name of transformers 4, which that one warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _base(model: Policy) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def _save_whole(model: Policy) -> Callable[[Path], None]:
    """What writes weights under their own names, adapters merged, each once where several names share it."""
    base = _base(model)
    twice = getattr(base, "all_tied_weights_keys", {})
    state = {name: weight for name, weight in classifier_state(base).items() if name not in twice}
    return lambda folder: base.save_pretrained(folder, state_dict=state)


def _save_adapters(model: PeftModel) -> Callable[[Path], None]:
    state = dict(get_model_state_dict(model, options=WHOLE))

    def save(folder: Path) -> None:
        model.save_pretrained(str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False, state_dict=state)
        (folder / "README.md").unlink()  # PEFT's own, which tells where on this machine the base lies

    return save
