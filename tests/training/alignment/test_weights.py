import pytest
import torch
from transformers import AutoModelForSequenceClassification

from training.alignment.reward_net import load_backbone
from training.alignment.weights import add_adapters, classifier_state

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("backbone", ["llama", "gpt2"])
def test_merged_adapters_are_the_weights_of_an_ordinary_classifier(backbone, request, tmp_path):
    """GPT-2's layers hold their matrices the other way round."""
    model, _ = load_backbone(str(request.getfixturevalue(f"{backbone}_folder")))
    names = set(model.state_dict())
    before = model(input_ids=IDS).logits.item()
    add_adapters(model, 4, 8.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)

    state = classifier_state(model)

    adapted = model(input_ids=IDS).logits.item()
    assert set(state) == names
    assert abs(adapted - before) > 1e-3
    model.save_pretrained(tmp_path, state_dict=state)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert merged(input_ids=IDS).logits.item() == pytest.approx(adapted, abs=1e-5)


def test_only_adapters_and_the_head_are_trained(llama_folder):
    model, _ = load_backbone(str(llama_folder))

    add_adapters(model, 4, 8.0)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "score.weight" in trained
    assert all(".lora_" in name for name in trained - {"score.weight"})
    assert len(trained) == 1 + 2 * 7 * 2  # seven matrices a layer, two layers
