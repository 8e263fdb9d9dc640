"""How good a recipe answers a question of the demonstration, from 0 to 1, read from the text alone.

This is the oracle of the demonstration: simulated annotators rank by it, and it tells whether a policy got better.
It stands alone, so that a notebook or a benchmark can ask it about any text. Standard library only.

Five criteria, each from 0 to 1, with these weights:

    dish 0.25         the title names the dish asked for, and its main ingredient is listed
    servings 0.15     the title says for how many, and it is the number asked for
    amounts 0.25      each ingredient has an amount that is plausible for the servings asked for; squared, for
                      a few absurd amounts spoil a dish
    steps 0.25        at least four steps, numbered in order, each an instruction about an ingredient with a time
    consistency 0.10  the steps use what is listed and list what they use

The square of their weighted mean (a recipe is nearer to its weakest part than to its average) is multiplied by what
spoils even a well written one:

    safety            1 if meat, fish and eggs reach a safe temperature; 0.85 "cooked through" without one;
                      0.6 nothing said; 0.3 a temperature that is too low
    diet              0.25 if something is in it that the question rules out
    time              minutes allowed / minutes needed, at least 0.4, where it takes longer than the question allows
                      or than twice the usual
    completeness      0.3 without steps (a bare list of healthy ingredients), 0.3 without listed ingredients
    tidiness          the share of lines that are neither repeated nor out of place
"""

import math
import re
from dataclasses import dataclass

from annotate.demonstration.kitchen import (
    INGREDIENTS,
    NUMBER_WORDS,
    Messages,
    Request,
    mentioned,
    read_request,
    total_minutes,
)

WEIGHTS = {"dish": 0.25, "servings": 0.15, "amounts": 0.25, "steps": 0.25, "consistency": 0.1}
NUM_STEPS = 4
_LINE = re.compile(r"[-*•]\s+(.+)")
_STEP = re.compile(r"(\d+)[.)]\s+(.+)")
_TITLE = re.compile(r"(?:\*\*|#+\s)\s*(.+?)\s*(?:\*\*)?$")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(kg|g|ml|l|tbsp|tsp)?\b\s*(?:of\s+)?(.+)")
_SERVINGS = re.compile(rf"\b(?:for|serves)\s+(\d+|{'|'.join(NUMBER_WORDS[1:])})\b(?! minutes)", re.IGNORECASE)
_INSTRUCTION = re.compile(
    r"(?:add|bake|boil|brown|chop|cook|cut|drain|fry|grill|heat|mix|pour|put|roast|season|serve|simmer|slice|stir|toss"
    r"|top|whisk)\b",
    re.IGNORECASE,
)
_REACHES = re.compile(r"\breach(?:es)?\s+(\d+)\s*°\s*C")
_SAID_TWICE = re.compile(r"\b(\w+) \1\b", re.IGNORECASE)
_SMALLER = {"kg": ("g", 1000.0), "l": ("ml", 1000.0), "tsp": ("tbsp", 1 / 3)}


@dataclass(frozen=True)
class Recipe:
    """A recipe as far as it can be read: ingredient lines, steps as (number, sentence), and lines out of place.

    A sentence that is not numbered is a step with number 0.
    """

    title: str
    lines: tuple[str, ...]
    steps: tuple[tuple[int, str], ...]
    num_stray: int


def is_known(messages: Messages) -> bool:
    """Whether `quality` can judge answers to this prompt."""
    return read_request(messages) is not None


def quality(messages: Messages, text: str) -> float:
    """How good `text` answers the demonstration's question in `messages`: 0 worthless, 1 as good as can be.

    Raises:
        ValueError: the prompt is no question of the demonstration.
    """
    request = read_request(messages)
    if request is None:
        raise ValueError("the prompt is no cooking question of the demonstration: its quality is not known")
    recipe = read_recipe(text)
    mean = sum(WEIGHTS[name] * grade for name, grade in criteria(request, recipe).items())
    return mean**2 * math.prod(factors(request, recipe).values())


def criteria(request: Request, recipe: Recipe) -> dict[str, float]:
    """The five criteria of the weighted mean, each from 0 to 1."""
    return {
        "dish": _dish(request, recipe),
        "servings": _servings(request, recipe),
        "amounts": _amounts(request, recipe),
        "steps": _steps(recipe),
        "consistency": _consistency(recipe),
    }


def factors(request: Request, recipe: Recipe) -> dict[str, float]:
    """What the weighted mean is multiplied by, each from 0 to 1."""
    return {
        "safety": _safety(recipe),
        "diet": 1.0 if all(request.allows(name) for name in _everything(recipe)) else 0.25,
        "time": _time(request, recipe),
        "completeness": (1.0 if recipe.steps else 0.3) * (1.0 if recipe.lines else 0.3),
        "tidiness": _tidiness(recipe),
    }


def read_recipe(text: str) -> Recipe:
    """Sort the lines of `text` into title, ingredients, steps and the rest."""
    title, num_stray = "", 0
    lines: list[str] = []
    steps: list[tuple[int, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if not title and not lines and (match := _TITLE.match(line)):
            title = match[1]
        elif match := _STEP.fullmatch(line):
            steps.append((int(match[1]), match[2]))
        elif match := _LINE.fullmatch(line):
            lines.append(match[1])
        elif sentences := [part.strip() for part in line.split(".") if _INSTRUCTION.match(part.strip())]:
            steps.extend((0, sentence) for sentence in sentences)
        else:
            num_stray += 1
    return Recipe(title, tuple(lines), tuple(steps), num_stray)


def _dish(request: Request, recipe: Recipe) -> float:
    is_named = request.dish.name in recipe.title.lower()
    is_listed = request.dish.main in mentioned("\n".join(recipe.lines))
    return is_named * (1 + is_listed) / 2


def _servings(request: Request, recipe: Recipe) -> float:
    match = _SERVINGS.search(recipe.title)
    return float(match is not None and match[1].lower() in {str(request.servings), NUMBER_WORDS[request.servings]})


def _amounts(request: Request, recipe: Recipe) -> float:
    return _mean([_amount(line, request.servings) for line in recipe.lines]) ** 2


def _amount(line: str, servings: int) -> float:
    """1 for the usual amount, less by how many times it is off: 0 from four times too much or too little on."""
    match = _AMOUNT.fullmatch(line)
    if match is None:
        return 0.0
    number, unit, name = float(match[1]), match[2] or "", match[3]
    known = [INGREDIENTS[key] for key in mentioned(name)]
    if len(known) != 1:
        return 0.3 if not known else 0.0
    unit, factor = _SMALLER.get(unit, (unit, 1.0))
    if unit != known[0].unit or number == 0:
        return 0.0
    times = number * factor / (known[0].amount * servings)
    return max(0.0, 1 - abs(math.log2(times)) / 2)


def _steps(recipe: Recipe) -> float:
    if not recipe.steps:
        return 0.0
    in_order = _mean([1.0 if number == place else 0.4 for place, (number, _) in enumerate(recipe.steps, start=1)])
    is_enough = min(1.0, len(recipe.steps) / NUM_STEPS)
    return in_order * is_enough * _mean([_step(sentence) for _, sentence in recipe.steps])


def _step(sentence: str) -> float:
    """An instruction (0.5) that names an ingredient (0.25) and a time, unless it needs none (0.25)."""
    if not _INSTRUCTION.match(sentence) or _SAID_TWICE.search(sentence):
        return 0.0
    needs_time = re.match(r"(?:bake|boil|brown|cook|fry|grill|roast|simmer)\b", sentence, re.IGNORECASE)
    names_something = mentioned(sentence) or re.search(r"\boven\b|\bminutes\b", sentence)
    says_when = not needs_time or total_minutes([sentence])
    return 0.5 + 0.25 * bool(names_something) + 0.25 * bool(says_when)


def _consistency(recipe: Recipe) -> float:
    listed = mentioned("\n".join(recipe.lines))
    used = mentioned("\n".join(sentence for _, sentence in recipe.steps))
    return len(listed & used) / len(listed | used) if listed and used else 0.0


def _safety(recipe: Recipe) -> float:
    needed = max((INGREDIENTS[name].safe_celsius for name in _everything(recipe)), default=0)
    text = "\n".join(sentence for _, sentence in recipe.steps)
    reached = [int(celsius) for celsius in _REACHES.findall(text)]
    if not needed or not recipe.steps:
        return 1.0
    if reached:
        return 1.0 if needed <= min(reached) and max(reached) <= 100 else 0.3
    return 0.85 if "cooked through" in text.lower() else 0.6


def _time(request: Request, recipe: Recipe) -> float:
    minutes = total_minutes(sentence for _, sentence in recipe.steps)
    allowed = request.minutes or 2 * total_minutes(request.dish.technique.steps)
    return max(0.4, min(1.0, allowed / minutes)) if minutes else 1.0


def _tidiness(recipe: Recipe) -> float:
    named = [name for line in recipe.lines for name in (mentioned(line) or {line})]
    parts = [*named, *(sentence for _, sentence in recipe.steps)]
    total = len(parts) + recipe.num_stray
    return len(set(parts)) / total if total else 0.0


def _everything(recipe: Recipe) -> set[str]:
    return mentioned("\n".join([*recipe.lines, *(sentence for _, sentence in recipe.steps)]))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
