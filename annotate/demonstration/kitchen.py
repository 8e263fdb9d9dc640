"""What the demonstration knows of cooking: ingredients, dishes, and how to read what somebody asks for.

The one table behind both `recipes.py`, which writes questions and answers, and `quality.py`, which judges answers.
Standard library only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Ingredient:
    """`amount` in `unit` is usual for one serving; inside, it is safe to eat from `safe_celsius` on (0: always)."""

    name: str
    amount: float
    unit: str
    traits: frozenset[str] = frozenset()
    safe_celsius: int = 0

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        stem = self.name[:-2] if self.name.endswith("oes") else self.name.removesuffix("s")
        return re.compile(rf"\b{stem}(?:s|es)?\b", re.IGNORECASE)


def _ingredients(*rows: tuple[str, float, str, str, int]) -> dict[str, Ingredient]:
    return {row[0]: Ingredient(row[0], row[1], row[2], frozenset(row[3].split()), row[4]) for row in rows}


# Temperatures: poultry 74 °C, ground meat and egg dishes 71 °C, fish and whole cuts of beef 63 °C.
INGREDIENTS = _ingredients(
    ("chicken", 150, "g", "meat", 74),
    ("turkey", 150, "g", "meat", 74),
    ("pork", 150, "g", "meat", 71),
    ("beef", 150, "g", "meat", 63),
    ("salmon", 140, "g", "fish", 63),
    ("prawns", 120, "g", "fish", 63),
    ("eggs", 2, "", "egg", 71),
    ("tofu", 120, "g", "", 0),
    ("lentils", 75, "g", "", 0),
    ("chickpeas", 120, "g", "", 0),
    ("beans", 120, "g", "", 0),
    ("mushrooms", 120, "g", "", 0),
    ("onions", 60, "g", "", 0),
    ("carrots", 80, "g", "", 0),
    ("peppers", 80, "g", "", 0),
    ("spinach", 60, "g", "", 0),
    ("broccoli", 100, "g", "", 0),
    ("courgettes", 100, "g", "", 0),
    ("peas", 60, "g", "", 0),
    ("leeks", 80, "g", "", 0),
    ("rice", 75, "g", "", 0),
    ("potatoes", 200, "g", "", 0),
    ("noodles", 80, "g", "gluten", 0),
    ("couscous", 70, "g", "gluten", 0),
    ("bread", 60, "g", "gluten", 0),
    ("pasta", 90, "g", "gluten", 0),
    ("coconut milk", 100, "ml", "", 0),
    ("passata", 120, "ml", "", 0),
    ("stock", 250, "ml", "", 0),
    ("cream", 60, "ml", "dairy", 0),
    ("soy sauce", 1, "tbsp", "gluten", 0),
    ("lime juice", 1, "tbsp", "", 0),
    ("olive oil", 0.5, "tbsp", "", 0),
    ("cheese", 30, "g", "dairy", 0),
    ("butter", 10, "g", "dairy", 0),
    ("peanuts", 20, "g", "nuts", 0),
    ("almonds", 20, "g", "nuts", 0),
)
VEGETABLES = ("onions", "carrots", "peppers", "spinach", "broccoli", "courgettes", "peas", "leeks")


@dataclass(frozen=True)
class Technique:
    """A way to cook: which mains go with it, what it may be served with, and its steps.

    In the steps {main}, {first}, {second}, {base} and {liquid} stand for ingredients; {heat} for how far the main
    must be heated.
    """

    name: str
    mains: tuple[str, ...]
    bases: tuple[str, ...]
    liquids: tuple[str, ...]
    steps: tuple[str, ...]


TECHNIQUES = (
    Technique(
        "soup",
        ("chicken", "turkey", "lentils", "chickpeas", "beans", "mushrooms"),
        ("bread", "potatoes", "rice"),
        ("stock",),
        (
            "Fry the {first} in the olive oil for 5 minutes.",
            "Add the {main}, the {second} and the stock.",
            "Simmer for 20 minutes{heat}.",
            "Serve the soup with the {base}.",
        ),
    ),
    Technique(
        "curry",
        ("chicken", "turkey", "prawns", "salmon", "chickpeas", "lentils", "tofu"),
        ("rice", "potatoes", "couscous"),
        ("coconut milk", "cream", "passata"),
        (
            "Fry the {first} in the olive oil for 5 minutes.",
            "Add the {main} and the {second} and cook for 5 minutes.",
            "Pour in the {liquid} and simmer for 15 minutes{heat}.",
            "Boil the {base} for 15 minutes and serve with the curry.",
        ),
    ),
    Technique(
        "stir-fry",
        ("chicken", "beef", "pork", "prawns", "tofu", "mushrooms"),
        ("noodles", "rice"),
        ("soy sauce", "lime juice"),
        (
            "Boil the {base} for 10 minutes.",
            "Fry the {main} in the olive oil for 6 minutes{heat}.",
            "Add the {first} and the {second} and fry for 4 minutes.",
            "Stir in the {liquid} and serve with the {base}.",
        ),
    ),
    Technique(
        "stew",
        ("beef", "pork", "turkey", "lentils", "chickpeas", "beans"),
        ("potatoes", "bread", "rice"),
        ("stock", "passata"),
        (
            "Brown the {main} in the olive oil for 8 minutes.",
            "Add the {first} and the {second} and fry for 5 minutes.",
            "Pour in the {liquid} and simmer for 40 minutes{heat}.",
            "Serve the stew with the {base}.",
        ),
    ),
    Technique(
        "tray bake",
        ("chicken", "salmon", "turkey", "pork", "tofu", "mushrooms"),
        ("potatoes", "couscous", "rice"),
        ("lime juice", "soy sauce"),
        (
            "Heat the oven to 200 degrees.",
            "Toss the {first} and the {second} in the olive oil.",
            "Add the {main} and bake for 30 minutes{heat}.",
            "Boil the {base} for 15 minutes and serve with the {liquid}.",
        ),
    ),
    Technique(
        "pasta",
        ("salmon", "chicken", "prawns", "beef", "mushrooms", "lentils"),
        ("pasta",),
        ("cream", "passata"),
        (
            "Boil the pasta for 10 minutes.",
            "Fry the {main} in the olive oil for 8 minutes{heat}.",
            "Add the {first}, the {second} and the {liquid} and simmer for 5 minutes.",
            "Mix with the pasta and serve.",
        ),
    ),
    Technique(
        "fried rice",
        ("eggs", "chicken", "prawns", "tofu", "pork"),
        ("rice",),
        ("soy sauce", "lime juice"),
        (
            "Boil the rice for 12 minutes.",
            "Fry the {first} and the {second} in the olive oil for 5 minutes.",
            "Add the {main} and fry for 6 minutes{heat}.",
            "Stir in the rice and the {liquid} and serve.",
        ),
    ),
)


@dataclass(frozen=True)
class Dish:
    technique: Technique
    main: str

    @property
    def name(self) -> str:
        return f"{self.main.removesuffix('s')} {self.technique.name}"


DISHES = {dish.name: dish for dish in (Dish(technique, main) for technique in TECHNIQUES for main in technique.mains)}

# What somebody does not eat -> how a question says so, and the traits that it rules out.
DIETS: dict[str, tuple[re.Pattern[str], frozenset[str]]] = {
    "vegan": (re.compile(r"\bvegan"), frozenset({"meat", "fish", "dairy", "egg"})),
    "vegetarian": (re.compile(r"\bvegetarian"), frozenset({"meat", "fish"})),
    "no nuts": (re.compile(r"\bnuts?\b"), frozenset({"nuts"})),
    "no dairy": (re.compile(r"\b(?:dairy|lactose)\b"), frozenset({"dairy"})),
    "no gluten": (re.compile(r"\b(?:gluten|coeliac)\b"), frozenset({"gluten"})),
}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
MIN_SERVINGS, MAX_SERVINGS = 2, 8
_DISH = re.compile("|".join(sorted(DISHES, key=len, reverse=True)))
_MINUTES = re.compile(r"(\d+) minutes")
_SERVINGS = re.compile(rf"\b({'|'.join(NUMBER_WORDS[MIN_SERVINGS:])}|[{MIN_SERVINGS}-{MAX_SERVINGS}])\b(?! minutes)")


@dataclass(frozen=True)
class Request:
    """What a question asks for; `minutes` is 0 where nobody is in a hurry."""

    dish: Dish
    servings: int
    diets: tuple[str, ...] = ()
    minutes: int = 0

    @property
    def forbidden(self) -> frozenset[str]:
        return frozenset().union(*(DIETS[diet][1] for diet in self.diets))

    def allows(self, name: str) -> bool:
        return not INGREDIENTS[name].traits & self.forbidden


def read_request(messages: Messages) -> Request | None:
    """What the last message of a conversation asks for; None where it is no question of the demonstration."""
    if not messages or messages[-1].get("role") != "user":
        return None
    text = messages[-1]["content"].lower()
    dish, servings, minutes = _DISH.search(text), _SERVINGS.search(text), _MINUTES.search(text)
    if dish is None or servings is None:
        return None
    return Request(
        dish=DISHES[dish.group()],
        servings=_number(servings.group(1)),
        diets=tuple(diet for diet, (pattern, _) in DIETS.items() if pattern.search(text)),
        minutes=int(minutes.group(1)) if minutes else 0,
    )


def mentioned(text: str) -> set[str]:
    """Names of the known ingredients that `text` mentions."""
    return {name for name, ingredient in INGREDIENTS.items() if ingredient.pattern.search(text)}


def total_minutes(steps: Iterable[str]) -> int:
    return sum(int(minutes) for step in steps for minutes in _MINUTES.findall(step))


def _number(word: str) -> int:
    return int(word) if word.isdigit() else NUMBER_WORDS.index(word)
