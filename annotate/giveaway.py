"""Answers that name the model which wrote them."""


def giveaway(content: str, model: str) -> str:
    """The words with which an answer names its model; empty if it does not."""
    return model if model and model in content else ""
