import pytest

from annotate.giveaway import CLUES, MAX_SEARCHED, MAX_WORDS, giveaway

NAMES_ITSELF = {
    "I am ChatGPT.": "I am ChatGPT",
    "I'm ChatGPT, a language model.": "I'm ChatGPT",
    "Hi! My name is Claude. How can I help?": "My name is Claude",
    "No, I\u2019m Claude - an AI assistant.": "I\u2019m Claude",
    "I'm Claude, made by Anthropic": "I'm Claude",
    "I am Claude": "I am Claude",
    "I am an AI assistant created by Anthropic to be helpful.": "I am an AI assistant created by Anthropic",
    "As an AI developed by OpenAI, I have no opinions.": "As an AI developed by OpenAI",
    "As a large language model trained by Google, I cannot.": "As a large language model trained by Google",
    "As ChatGPT, I cannot browse.": "As ChatGPT",
    "As Gemini, I would rather not say.": "As Gemini",
    "I was trained by Mistral AI.": "I was trained by Mistral",
    "Yes, I am based on OpenAI's GPT-3 model.": "I am based on OpenAI's GPT-3",
    "I'm Gemini, a large language model.": "I'm Gemini",
    "I am Llama, an AI model developed by Meta.": "I am Llama",
    "You can call me Vicuna, a language model by LMSYS.": "call me Vicuna",
    "You can call me an OpenAssistant!": "call me an OpenAssistant",
    'Please call me "ChatGPT." Thanks.': 'call me "ChatGPT',
    "My creators at Anthropic would not like that.": "My creators at Anthropic",
    "OpenAI, who created me, is in San Francisco.": "OpenAI, who created me",
    "You are talking to GPT-4o.": "You are talking to GPT-4o",
    "Ich bin ChatGPT und helfe gern.": "Ich bin ChatGPT",
    "Je suis ChatGPT.": "Je suis ChatGPT",
    "我是通义千问。": "我是通义千问",
    "İ ŞI'M QWEN2.5-MAX.": "",  # no word of its own before the name
    "İstanbul? I'm Qwen2.5.": "I'm Qwen2.5",
}
SPEAKS_OF_OTHERS = (
    "",
    "Claude Monet painted water lilies.",
    "I am Claude Monet, and I paint.",
    "As Claude Monet, I paint water lilies.",
    "I'm Claude, a baker from Lyon.",
    "Play Clair de Lune by Claude Debussy.",
    "Gemini is the third sign of the zodiac.",
    "I'm a Gemini and you are a Leo.",
    "As Gemini season begins, I plan my year.",
    "A llama is not an alpaca, as I said.",
    "I am a llama, and I spit.",
    "I saw a koala, a falcon and a vicuña.",
    "The bard of Avon wrote it; I am no bard.",
    "I am Bard, dragonslayer of Laketown.",
    "Tools such as ChatGPT, which I like, are new.",
    "ChatGPT was made by OpenAI.",
    "I am not ChatGPT.",
    "As ChatGPT becomes popular, my neighbours ask for it.",
    "I work at Google as an engineer.",
    "I was hired by Microsoft in 2010.",
    "As a teacher, I use an AI tool by Google.",
    "The Anthropic Principle says that we are here.",
    "What do you think about GPT-4?",
    "Dolly the sheep; Sydney, Australia; a mistral blows.",
    "As an AI language model, I have no feelings.",
)


@pytest.mark.parametrize(("content", "words"), NAMES_ITSELF.items())
def test_giveaway_finds_an_answer_that_names_its_model(content, words):
    assert giveaway(content, "") == words


@pytest.mark.parametrize("content", SPEAKS_OF_OTHERS)
def test_giveaway_leaves_other_talk_alone(content):
    assert giveaway(content, "") == ""


@pytest.mark.parametrize(
    ("content", "model", "words"),
    [
        ("What GPT-4 can do", "gpt-4", "GPT-4"),
        ("What GPT-4 can do", "gpt-4-0613", "GPT-4"),
        ("What GPT-4o can do", "gpt-4", ""),
        ("Try Llama-3 or others", "meta-llama/Llama-3-8B-Instruct", "Llama-3"),
        ("text_davinci_003 says", "text_davinci_003", "text_davinci_003"),
        ("ChatGPT cannot do that", "chatgpt", "ChatGPT"),
        ("ChatGPT cannot do that", "vicuna-13b", ""),
        ("Claude Monet painted", "claude", ""),
        ("a falcon and a human", "falcon", ""),
        ("a falcon and a human", "human", ""),
        ("x = 7b", "7b", ""),
        ("anything", "", ""),
        ("A soup in 30 minutes", "30", ""),
    ],
)
def test_giveaway_finds_the_name_that_the_data_give_the_model(content, model, words):
    assert giveaway(content, model) == words


def test_giveaway_fits_its_field():
    assert len(giveaway("I am GPT-4" + "4" * 500, "")) == MAX_WORDS
    assert len(giveaway("model-" + "4" * 500, "model-" + "4" * 500)) == MAX_WORDS


@pytest.mark.parametrize("words", ["I am an AI trained by ", "As an ai by the ", "I am ", "as an "])
def test_giveaway_comes_to_an_end_of_texts_that_always_seem_to_begin_one(words):
    text = "OpenAI! " + words * (MAX_SEARCHED // len(words))

    assert giveaway(text, "gpt-4") == ""


def test_clues_are_what_lower_case_texts_hold():
    assert [clue for clue in CLUES if clue != clue.lower()] == []
