"""The demonstration project: cooking questions that we wrote, with recipe answers of varied quality.

Five invented cooks answer each question, from a careful one to one who only lists healthy ingredients; an answer
starts as a good recipe and is spoilt by faults. `quality.py` knows how good the outcome is. The same grammar writes
examples for a small language model, whose first attempts are then as mixed as those of the cooks.
Standard library only; everything follows from the seed.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from annotate.demonstration.kitchen import (
    DIETS,
    DISHES,
    INGREDIENTS,
    MAX_SERVINGS,
    MIN_SERVINGS,
    NUMBER_WORDS,
    VEGETABLES,
    Dish,
    Messages,
    Request,
    total_minutes,
)

NUM_PROMPTS = 120
CONVERSATION_SHARE = 0.15

_QUESTIONS = (
    "How do I make {dish} for {n}?{wish}",
    "Please give me a recipe for {dish} that serves {n}.{wish}",
    "I want to cook {dish} for {n} people tonight.{wish}",
    "We are {n} at the table and would love {dish}.{wish} What do I do?",
    "Can you write down {dish} for {n}, step by step?{wish}",
    "Dinner for {n}: {dish}.{wish}",
    "I promised {dish} to {n} friends.{wish} How does it work?",
    "What is a good {dish} for {n} persons?{wish}",
    "My family of {n} likes {dish}.{wish} Can I have the recipe?",
    "Help me cook {dish}, {n} servings.{wish}",
)
_FOLLOW_UPS = (
    "The {dish}, please, for {n}.{wish}",
    "Then {dish} for {n}.{wish}",
    "I take the {dish}. We are {n}.{wish}",
)
_WISHES = {
    "vegan": ("Please keep it vegan.", "My guests are vegan."),
    "vegetarian": ("It must be vegetarian.", "Some of us are vegetarian."),
    "no nuts": ("My guest is allergic to nuts.", "No nuts, please."),
    "no dairy": ("No dairy, please.", "I cannot have lactose."),
    "no gluten": ("It must be free of gluten.", "My son has coeliac disease."),
}
_HURRY = ("I have {minutes} minutes.", "It has to be ready in {minutes} minutes.")
_TOPPINGS = ("peanuts", "almonds", "cheese", "butter", "bread")
_HEALTHY = ("Spinach", "Kale", "Quinoa", "Avocado", "Blueberries", "Walnuts", "Oats", "Lentils", "Broccoli", "Salmon")


@dataclass(frozen=True)
class Draft:
    """An answer being written; an amount of None is left out. `servings` may differ from what was asked for."""

    dish: Dish
    servings: int
    amounts: tuple[tuple[str, float | None], ...]
    steps: tuple[str, ...]
    is_numbered: bool = True


_SHARES = (3, 3, 2, 1, 1)  # of the cooks, in the order of COOKS, in what a language model learns from

Fault = Callable[[Draft, Request, random.Random], Draft]
Cook = Callable[[Request, random.Random], str]


def demonstration_rows(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows to import, without rankings: for each question a pairwise and a listwise comparison of its answers."""
    rng = random.Random(f"demonstration {seed}")
    for number, (messages, request) in enumerate(_distinct_questions(rng, NUM_PROMPTS), start=1):
        responses = [
            {"role": "assistant", "content": cook(request, rng), "model": f"demonstration/{name}"}
            for name, cook in COOKS.items()
        ]
        for kind, size in (("pair", 2), ("list", 5 if number % 4 == 0 else 4)):
            yield {
                "id": f"recipe-{number:03d}-{kind}",
                "prompt": messages,
                "responses": rng.sample(responses, size),
                "meta": {"demonstration": True},
            }


def sft_examples(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """`n` examples {"prompt": messages, "completion": text} of mixed quality; none is a question of the project."""
    rng = random.Random(f"examples {seed}")
    asked = _distinct_questions(random.Random("demonstration 0"), NUM_PROMPTS)
    taken = {messages[-1]["content"] for messages, _ in asked}
    cooks = tuple(COOKS.values())
    made = 0
    while made < n:
        messages, request = write_question(rng)
        if messages[-1]["content"] not in taken:
            yield {"prompt": messages, "completion": rng.choices(cooks, _SHARES)[0](request, rng)}
            made += 1


def write_question(rng: random.Random) -> tuple[Messages, Request]:
    """One question, now and then as the end of a short conversation, and what it asks for."""
    request = _draw_request(rng)
    is_conversation = rng.random() < CONVERSATION_SHARE
    wish = "".join(f" {_wish(request, diet, rng)}" for diet in (*request.diets, *(["hurry"] * (request.minutes > 0))))
    servings = rng.choice((str(request.servings), NUMBER_WORDS[request.servings]))
    template = rng.choice(_FOLLOW_UPS if is_conversation else _QUESTIONS)
    question = {"role": "user", "content": template.format(dish=request.dish.name, n=servings, wish=wish)}
    if not is_conversation:
        return [question], request
    main, other = request.dish.main, _other_dish(request.dish, rng)
    messages = [
        {"role": "user", "content": f"What can I cook with {main}?"},
        {"role": "assistant", "content": f"How about {request.dish.name}, or {other.name}?"},
        question,
    ]
    return messages, request


def write_answer(request: Request, faults: Iterable[Fault], rng: random.Random) -> str:
    """A good recipe for `request`, spoilt by `faults` one after the other."""
    draft = _good_draft(request, rng)
    for fault in faults:
        draft = fault(draft, request, rng)
    return _write_out(draft)


def write_healthy_list(request: Request, rng: random.Random) -> str:
    """What looks wholesome and helps nobody: ingredients without amounts, and no steps."""
    lines = "\n".join(f"- {name}" for name in rng.sample(_HEALTHY, rng.randint(5, 7)))
    return f"**Healthy {request.dish.name}**\n\n{lines}"


def _draw_request(rng: random.Random) -> Request:
    dish = rng.choice(tuple(DISHES.values()))
    servings = rng.randint(MIN_SERVINGS, MAX_SERVINGS)
    needed = total_minutes(dish.technique.steps)
    hurry = rng.choice((needed, needed + 5, needed + 10)) if rng.random() < 0.2 else 0
    diets = [diet for diet in DIETS if _is_possible(Request(dish, servings, (diet,)))]
    chosen = (rng.choice(diets),) if rng.random() < 0.5 else ()
    return Request(dish, servings, chosen, hurry)


def _is_possible(request: Request) -> bool:
    technique = request.dish.technique
    choices = ((request.dish.main,), technique.bases, technique.liquids)
    return all(any(request.allows(name) for name in names) for names in choices)


def _wish(request: Request, what: str, rng: random.Random) -> str:
    return rng.choice(_HURRY).format(minutes=request.minutes) if what == "hurry" else rng.choice(_WISHES[what])


def _other_dish(dish: Dish, rng: random.Random) -> Dish:
    """Another dish with the same main ingredient where there is one."""
    others = [other for other in DISHES.values() if other != dish]
    return rng.choice([other for other in others if other.main == dish.main] or others)


def _distinct_questions(rng: random.Random, n: int) -> list[tuple[Messages, Request]]:
    questions: dict[str, tuple[Messages, Request]] = {}
    while len(questions) < n:
        messages, request = write_question(rng)
        questions.setdefault(messages[-1]["content"], (messages, request))
    return list(questions.values())


def _good_draft(request: Request, rng: random.Random) -> Draft:
    technique, main = request.dish.technique, request.dish.main
    first, second = rng.sample(VEGETABLES, 2)
    base = rng.choice([name for name in technique.bases if request.allows(name)])
    liquid = rng.choice([name for name in technique.liquids if request.allows(name)])
    safe = INGREDIENTS[main].safe_celsius
    heat = f", until the {main} reach{'' if main.endswith('s') else 'es'} {safe} °C" if safe else ""
    words = {"main": main, "first": first, "second": second, "base": base, "liquid": liquid, "heat": heat}
    names = (main, first, second, base, liquid, "olive oil")
    return Draft(
        dish=request.dish,
        servings=request.servings,
        amounts=tuple((name, _usual(name, request.servings) * rng.choice((0.8, 1, 1, 1, 1.25))) for name in names),
        steps=tuple(step.format(**words) for step in technique.steps),
    )


def _usual(name: str, servings: int) -> float:
    return INGREDIENTS[name].amount * servings


def _write_out(draft: Draft) -> str:
    title = f"**{draft.dish.name.capitalize()} for {draft.servings}**"
    lines = "\n".join(f"- {_write_amount(name, amount)}{name}" for name, amount in draft.amounts)
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(draft.steps, start=1))
    return f"{title}\n\n{lines}\n\n{steps if draft.is_numbered else ' '.join(draft.steps)}".strip()


def _write_amount(name: str, amount: float | None) -> str:
    """Rounded as one would measure it: to 50 g from 200 g on, to 10 g below, to whole spoons and pieces."""
    if amount is None:
        return ""
    unit = INGREDIENTS[name].unit
    step = 1 if unit in {"", "tbsp"} else 50 if amount >= 200 else 10
    return f"{max(step, round(amount / step) * step)} {unit} ".replace("  ", " ")


# The faults: what less careful cooks do.


def for_too_many(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Cook for another number of people than asked."""
    servings = rng.choice([n for n in range(MIN_SERVINGS, MAX_SERVINGS + 1) if n != request.servings])
    scaled = tuple((name, amount and amount * servings / draft.servings) for name, amount in draft.amounts)
    return replace(draft, servings=servings, amounts=scaled)


def odd_amounts(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Two or three amounts are many times too much."""
    odd = set(rng.sample([name for name, _ in draft.amounts], rng.randint(2, 3)))
    times = rng.choice((10, 20))
    return replace(
        draft,
        amounts=tuple((name, amount and amount * times if name in odd else amount) for name, amount in draft.amounts),
    )


def no_amounts(draft: Draft, request: Request, rng: random.Random) -> Draft:
    return replace(draft, amounts=tuple((name, None) for name, _ in draft.amounts))


def undercooked(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Stop at a temperature that is not safe, or name none; needs a dish that must be heated."""
    safe = INGREDIENTS[draft.dish.main].safe_celsius
    too_low = rng.choice(("40 °C", "50 °C"))
    if rng.random() < 0.7:
        return replace(draft, steps=tuple(step.replace(f"{safe} °C", too_low) for step in draft.steps))
    return replace(draft, steps=tuple(step.split(", until")[0].rstrip(".") + "." for step in draft.steps))


def forbidden(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Finish with something that the question rules out; needs one that rules something out."""
    topping = rng.choice([name for name in _TOPPINGS if not request.allows(name)])
    amounts = (*draft.amounts, (topping, _usual(topping, draft.servings)))
    return replace(draft, amounts=amounts, steps=(*draft.steps, f"Top with the {topping}."))


def vague(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Most steps shrink to a remark."""
    remarks = rng.sample(("Prepare everything.", "Cook until done.", "Season to taste.", "Enjoy!"), 3)
    return replace(draft, steps=(*remarks[:2], draft.steps[-1], remarks[2])[: rng.randint(2, 4)])


def unnumbered(draft: Draft, request: Request, rng: random.Random) -> Draft:
    return replace(draft, is_numbered=False)


def cut_short(draft: Draft, request: Request, rng: random.Random) -> Draft:
    return replace(draft, steps=draft.steps[: rng.randint(1, 2)])


def slow(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Take many times as long."""
    times = rng.choice((8, 10))
    return replace(draft, steps=tuple(_stretch(step, times) for step in draft.steps))


def unlisted(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Forget to list half of the ingredients."""
    kept = sorted(rng.sample(range(len(draft.amounts)), len(draft.amounts) // 2))
    return replace(draft, amounts=tuple(draft.amounts[index] for index in kept))


def other_dish(draft: Draft, request: Request, rng: random.Random) -> Draft:
    """Answer a question about another dish."""
    return _good_draft(Request(_other_dish(request.dish, rng), draft.servings), rng)


def _stretch(step: str, times: int) -> str:
    words = step.split(" ")
    return " ".join(
        str(int(word) * times) if word.isdigit() and words[place + 1].startswith("minutes") else word
        for place, word in enumerate(words)
    )


# How often each is made, in relation to the others: what a small reward model cannot see is made less often.
FAULTS: dict[Fault, int] = {
    for_too_many: 1,
    odd_amounts: 3,
    no_amounts: 3,
    undercooked: 3,
    forbidden: 3,
    vague: 3,
    unnumbered: 3,
    cut_short: 3,
    slow: 2,
    unlisted: 2,
    other_dish: 1,
}


def possible_faults(request: Request) -> list[Fault]:
    """The faults that make an answer to `request` worse."""
    is_safe_raw = not INGREDIENTS[request.dish.main].safe_celsius
    pointless = {undercooked} if is_safe_raw else set()
    if not any(not request.allows(name) for name in _TOPPINGS):
        pointless.add(forbidden)
    return [fault for fault in FAULTS if fault not in pointless]


def _cook_with(*num_faults: int) -> Cook:
    """A cook who makes one of `num_faults` many faults."""

    def cook(request: Request, rng: random.Random) -> str:
        possible, made = possible_faults(request), []
        for _ in range(rng.choice(num_faults)):
            made += rng.choices(possible, [FAULTS[fault] for fault in possible])
            possible.remove(made[-1])
        return write_answer(request, made, rng)

    return cook


COOKS: dict[str, Cook] = {
    "chef": _cook_with(0, 0, 0, 1),
    "home-cook": _cook_with(1),
    "beginner": _cook_with(1, 2),
    "hurried": _cook_with(2, 3),
    "lister": write_healthy_list,
}
