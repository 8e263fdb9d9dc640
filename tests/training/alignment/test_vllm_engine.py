import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.test_generation import CONFIG, PROMPTS
from training.alignment import generation, vllm_engine
from training.alignment.config import ConfigError, SampleConfig
from training.alignment.generation import Generated, Generator


@pytest.fixture(scope="module")
def policy(llama_folder):
    return AutoModelForCausalLM.from_pretrained(llama_folder), AutoTokenizer.from_pretrained(llama_folder)


def test_vllm_is_refused_where_it_is_not(llama_folder):
    config = SampleConfig(backend="vllm")

    with pytest.raises(ConfigError, match="backend: vLLM is not installed here, or there is no GPU for it"):
        Generator(llama_folder, None, config, "cpu")


class StandIn:
    """Answers as vLLM does, by what each request's seed says, and keeps what it was asked."""

    engines: ClassVar[list["StandIn"]] = []

    def __init__(self, **options):
        self.tokenizer = AutoTokenizer.from_pretrained(options["model"])
        self.weights = AutoModelForCausalLM.from_pretrained(options.pop("model")).state_dict()
        self.options, self.asked = options, []
        self.engines.append(self)

    def generate(self, prompts, sampling_params, use_tqdm):
        self.asked += zip(prompts, sampling_params, strict=True)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.answer(one))]) for one in sampling_params]

    def answer(self, one):
        tokens = [20 + one.seed % 97, 20 + one.seed % 89]
        return [*tokens, *one.stop_token_ids] if one.seed % 2 else tokens


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_engine.importlib.metadata, "version", lambda name: "0.99")
    monkeypatch.setattr(generation, "has_vllm", lambda device: True)
    StandIn.engines.clear()
    return StandIn.engines


def test_vllm_is_given_each_response_as_a_request_with_a_seed_of_its_own(policy, llama_folder, stand_in):
    generator = Generator(llama_folder, None, SampleConfig(max_new_tokens=12, max_length=500, top_p=0.9), "cpu")
    told = []
    found = generator.generate_ids(PROMPTS, 3, 5, progress=lambda done, total: told.append((done, total)))

    assert (generator.name, told) == ("vLLM 0.99", [(9, 9)])
    (engine,) = stand_in
    assert engine.options == {
        "dtype": "float32",  # as on any device that has no bfloat16
        "max_model_len": 500,
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
    }
    assert [len(engine.tokenizer.decode(prompt["prompt_token_ids"])) > 10 for prompt, _ in engine.asked] == [True] * 9
    asked = [params for _, params in engine.asked]
    assert len({params.seed for params in asked}) == 9
    assert {(one.temperature, one.top_p, one.max_tokens, one.detokenize) for one in asked} == {(1.0, 0.9, 12, False)}
    ends = [policy[0].generation_config.eos_token_id]
    assert all(one.stop_token_ids == ends and one.ignore_eos for one in asked)
    flat = [one for own in found for one in own]
    assert flat == [Generated([20 + one.seed % 97, 20 + one.seed % 89], one.seed % 2 == 1) for one in asked]
    backwards = generator.generate_ids(PROMPTS[::-1], 2, 5)[::-1]
    assert backwards == [own[:2] for own in found]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own, of transformers 4
def test_vllm_gets_a_policy_in_training_as_it_is(policy, llama_folder, stand_in):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), LoraConfig(target_modules=["q_proj"]))
    projection = adapted.get_base_model().model.layers[0].self_attn.q_proj
    generator = Generator(adapted, policy[1], CONFIG, "cpu")
    projection.lora_B["default"].weight.data.fill_(0.1)

    generator.refresh(adapted)

    first, second = (engine.weights["model.layers.0.self_attn.q_proj.weight"] for engine in stand_in)
    change = projection.get_delta_weight("default")
    assert torch.equal(first, policy[0].model.layers[0].self_attn.q_proj.weight)
    torch.testing.assert_close(second, first + change)
    assert torch.equal(projection.base_layer.weight, first)
