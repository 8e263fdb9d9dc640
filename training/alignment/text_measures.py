"""What texts of a policy are like, whatever they say: how far they repeat themselves, and how far they differ.

Words are those of `rule_rewards.words`, in lower case: a character each where words are written without spaces.

Source of diversity: J. Li et al., "A diversity-promoting objective function for neural conversation models", 2016
(distinct-2), here among the responses to one prompt.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from training.alignment.rule_rewards import repeated_share, words

SIZE = 3  # words in a sequence that may be repeated


def repetition(texts: Sequence[str]) -> float:
    """The mean share of three-word sequences that stood in the same text before: 0 for none, below 1."""
    return fmean(repeated_share(words(text.lower()), SIZE) for text in texts) if texts else 0.0


def diversity(responses: Sequence[Sequence[str]]) -> float:
    """The share of distinct ones among the two-word sequences of all responses to a prompt, mean over prompts.

    1 where no pair of neighbouring words occurs twice; a prompt whose responses have none does not count.

    Args:
        responses: (B, K) of each prompt.

    Returns:
        0 where no prompt counts.
    """
    shares = []
    for own in responses:
        bigrams = [pair for text in own for pair in pairwise(words(text.lower()))]
        if bigrams:
            shares.append(len(set(bigrams)) / len(bigrams))
    return fmean(shares) if shares else 0.0
