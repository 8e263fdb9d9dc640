import math

import pytest
import torch
from safetensors.torch import load_file

from training.alignment.packing import Packing, Row, build_row, bundle
from training.alignment.reward_model import RewardModel
from training.alignment.reward_net import RewardNet, load_backbone


def row(texts: list[list[int]], packing: Packing) -> Row:
    return build_row([bundle(texts, packing)], packing, torch.device("cpu"))


@pytest.fixture(params=["llama", "gpt2"])
def untrained_folder(request, tmp_path):
    """A reward model with a random head, saved as training saves it."""
    model, tokenizer = load_backbone(str(request.getfixturevalue(f"{request.param}_folder")))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_reward_is_read_at_the_end_of_the_text_whatever_token_stands_there(untrained_folder):
    model = RewardModel.load(untrained_folder)
    plain = RewardModel.load(untrained_folder, packing=Packing.PADDED)
    end, padding = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    cases = [[70, 80, 90], [70, 80, 90, end], [70, 80, 90, end, end], [70, 80, 90, padding]]

    with torch.inference_mode():
        together = model.net(row(cases, model.net.packing))[:, 0].tolist()
        one_by_one = [plain.net(row([ids], Packing.PADDED)).item() for ids in cases]

    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert len({round(reward, 4) for reward in together}) == 4


def test_dropout_is_off(gpt2_folder):
    model, _ = load_backbone(str(gpt2_folder))  # which has dropout of 0.1
    net = RewardNet(model)
    one = row([[70, 80, 90]], net.packing)

    assert net(one).tolist() == net(one).tolist()


# The backbone


def test_a_new_head_starts_small_and_by_the_seed(llama_folder):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_backbone(str(llama_folder))[0].score.weight.detach())

    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(1 / math.sqrt(33), rel=0.4)


def test_a_head_that_was_trained_is_kept(untrained_folder):
    model, _ = load_backbone(str(untrained_folder))

    assert torch.equal(model.score.weight, load_file(untrained_folder / "model.safetensors")["score.weight"])


def test_padding_gets_a_token_of_its_own_where_it_would_look_like_the_end(gpt2_folder, llama_folder):
    model, tokenizer = load_backbone(str(gpt2_folder))

    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|pad|>", len(tokenizer) - 1)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert len(model.get_input_embeddings().weight) == len(tokenizer) == 301
    model, tokenizer = load_backbone(str(llama_folder))
    assert (tokenizer.pad_token_id, model.config.pad_token_id, len(tokenizer)) == (0, 0, 320)
