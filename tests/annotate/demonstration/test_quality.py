import pytest

from annotate.demonstration.kitchen import Request, read_request
from annotate.demonstration.quality import Recipe, criteria, factors, is_known, quality, read_recipe

CURRY = [{"role": "user", "content": "How do I make chicken curry for four?"}]
# The usual amounts for four: 4 x 150 g chicken, 4 x 60 g onions, 4 x 60 g peas, 4 x 75 g rice, 4 x 100 ml coconut
# milk, 4 x 0.5 tbsp olive oil.
GOOD = """**Chicken curry for 4**

- 600 g chicken
- 240 g onions
- 240 g peas
- 300 g rice
- 400 ml coconut milk
- 2 tbsp olive oil

1. Fry the onions in the olive oil for 5 minutes.
2. Add the chicken and the peas and cook for 5 minutes.
3. Pour in the coconut milk and simmer for 15 minutes, until the chicken reaches 74 °C.
4. Boil the rice for 15 minutes and serve with the curry."""
FULL_MARKS = {"dish": 1.0, "servings": 1.0, "amounts": 1.0, "steps": 1.0, "consistency": 1.0}
UNSPOILT = {"safety": 1.0, "diet": 1.0, "time": 1.0, "completeness": 1.0, "tidiness": 1.0}


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def judge(text: str, messages: list[dict[str, str]] = CURRY) -> tuple[dict[str, float], dict[str, float]]:
    """What differs from full marks."""
    request = read_request(messages)
    assert request is not None
    recipe = read_recipe(text)
    lost = {name: grade for name, grade in criteria(request, recipe).items() if grade != FULL_MARKS[name]}
    spoilt = {name: factor for name, factor in factors(request, recipe).items() if factor != UNSPOILT[name]}
    return lost, spoilt


def test_quality_of_a_faultless_recipe_is_one():
    assert judge(GOOD) == ({}, {})
    assert quality(CURRY, GOOD) == 1.0


def test_quality_is_the_squared_weighted_mean_times_the_factors():
    # servings 0 (weight 0.15): mean 0.85; a temperature that is too low: 0.3
    text = GOOD.replace("for 4**", "for 6**").replace("74 °C", "50 °C")

    assert judge(text) == ({"servings": 0.0}, {"safety": 0.3})
    assert quality(CURRY, text) == pytest.approx(0.85**2 * 0.3)


def test_read_recipe_sorts_lines():
    text = "# Rice\n- 75 g rice\n* salt\n1. Boil the rice for 9 minutes.\n2) Serve.\nServe it. Mix well.\nGood luck!"

    assert read_recipe(text) == Recipe(
        title="Rice",
        lines=("75 g rice", "salt"),
        steps=((1, "Boil the rice for 9 minutes."), (2, "Serve."), (0, "Serve it"), (0, "Mix well")),
        num_stray=1,
    )


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        pytest.param("**Chicken curry", "**Chicken soup", {"dish": 0.0}, id="title names another dish"),
        pytest.param("for 4**", "for 5**", {"servings": 0.0}, id="for too many"),
        pytest.param(" for 4**", "**", {"servings": 0.0}, id="does not say for how many"),
        # twice as much: 1 - log2(2)/2 = 0.5; the mean of the six (5.5/6) squared
        pytest.param("- 600 g", "- 1200 g", {"amounts": pytest.approx((5.5 / 6) ** 2)}, id="twice the chicken"),
        pytest.param("- 600 g", "- 9000 g", {"amounts": pytest.approx((5 / 6) ** 2)}, id="absurd amount"),
        pytest.param("- 600 g", "- 600 ml", {"amounts": pytest.approx((5 / 6) ** 2)}, id="a unit that makes no sense"),
        pytest.param("- 600 g", "-", {"amounts": pytest.approx((5 / 6) ** 2)}, id="no amount"),
        # the rice is used but not listed: 5 of 6 agree; six listed lines stay plausible but for one unknown (0.3)
        pytest.param(
            "- 300 g rice",
            "- 300 g sago",
            {"amounts": pytest.approx((5.3 / 6) ** 2), "consistency": 5 / 6},
            id="unknown ingredient",
        ),
        # a boiling step without a time: 0.75; the mean of four steps is 3.75/4
        pytest.param(" for 15 minutes and serve", " and serve", {"steps": 0.9375}, id="no time"),
        # not an instruction: 0; 3/4
        pytest.param("4. Boil the", "4. It is the", {"steps": 0.75}, id="no instruction"),
        pytest.param("4. Boil the", "4. Boil the the", {"steps": 0.75}, id="a word said twice"),
        # one of four numbers out of order counts 0.4: (3 + 0.4)/4
        pytest.param("4. Boil", "9. Boil", {"steps": 0.85}, id="out of order"),
    ],
)
def test_each_fault_costs_its_criterion(old, new, lost):
    text = GOOD.replace(old, new, 1)

    assert text != GOOD
    assert judge(text) == (lost, {})
    assert quality(CURRY, text) < 0.99


def test_steps_that_are_too_few_or_not_numbered():
    # two steps: half of what is wanted; rice and coconut milk are listed but not used: 4 of 6
    short = GOOD[: GOOD.index("\n3.")]
    assert judge(short) == ({"steps": 0.5, "consistency": pytest.approx(4 / 6)}, {"safety": 0.6})

    # sentences without numbers count 0.4
    prose = GOOD.replace("\n1. ", "\n").replace("\n2. ", " ").replace("\n3. ", " ").replace("\n4. ", " ")
    assert judge(prose) == ({"steps": pytest.approx(0.4)}, {})


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ("reaches 74 °C", "reaches 60 °C", 0.3),
        ("reaches 74 °C", "reaches 740 °C", 0.3),
        (", until the chicken reaches 74 °C", "", 0.6),
        ("the chicken reaches 74 °C", "the chicken is cooked through", 0.85),
    ],
)
def test_safety(old, new, factor):
    assert judge(GOOD.replace(old, new)) == ({}, {"safety": factor})


def test_fish_and_eggs_have_their_own_temperatures_and_lentils_need_none():
    for main, celsius, factor in (("salmon", 63, 1.0), ("salmon", 62, 0.3), ("eggs", 70, 0.3), ("lentils", 20, 1.0)):
        text = GOOD.replace("chicken", main).replace("74 °C", f"{celsius} °C")
        request = Request(dish=read_request(CURRY).dish, servings=4)
        assert factors(request, read_recipe(text))["safety"] == factor


@pytest.mark.parametrize(
    ("wish", "ingredient"),
    [
        ("No dairy, please.", "30 g cheese"),
        ("My guest is allergic to nuts.", "20 g peanuts"),
        ("My son has coeliac disease.", "70 g couscous"),
        ("Please keep it vegan.", "60 ml cream"),
        ("It must be vegetarian.", "150 g beef"),
    ],
)
def test_diet(wish, ingredient):
    messages = ask(f"How do I make lentil curry for four? {wish}")
    lentils = GOOD.replace("Chicken", "Lentil").replace("chicken", "lentils").replace("600 g", "300 g")
    spoilt = lentils.replace("- 300 g rice", f"- 300 g rice\n- {ingredient}")

    assert judge(lentils, messages) == ({}, {})
    assert judge(spoilt, messages)[1]["diet"] == 0.25
    assert "diet" not in judge(spoilt, ask("How do I make lentil curry for four?"))[1]


def test_time():
    # the steps take 5 + 5 + 15 + 15 = 40 minutes
    assert judge(GOOD, ask("chicken curry for 4, I have 40 minutes")) == ({}, {})
    assert judge(GOOD, ask("chicken curry for 4, I have 30 minutes")) == ({}, {"time": 0.75})
    assert judge(GOOD, ask("chicken curry for 4, I have 3 minutes")) == ({}, {"time": 0.4})
    # nobody is in a hurry, but 5 + 5 + 15 + 75 = 100 minutes is more than twice the usual 40
    assert judge(GOOD.replace("rice for 15", "rice for 75")) == ({}, {"time": 0.8})


def test_tidiness():
    # one of 11 parts is said twice
    assert judge(GOOD.replace("- 300 g rice", "- 300 g rice\n- 300 g rice")) == ({}, {"tidiness": 10 / 11})
    # one line of 11 has no place
    assert judge(GOOD.replace("\n\n1.", "\n\nyum yum\n1.")) == ({}, {"tidiness": 10 / 11})


def test_a_bare_list_of_healthy_ingredients_is_nearly_worthless():
    bare = "**Healthy chicken curry**\n\n- Spinach\n- Kale\n- Quinoa\n- Blueberries\n- Chicken"
    with_amounts = GOOD[: GOOD.index("\n\n1.")]

    assert quality(CURRY, bare) < 0.05
    assert judge(with_amounts) == ({"steps": 0.0, "consistency": 0.0}, {"completeness": 0.3})
    assert quality(CURRY, with_amounts) == pytest.approx(0.65**2 * 0.3)


@pytest.mark.parametrize(
    "text", ["", "   \n ", "curry", "1. 1. 1.", "**", "- - -", "the the the\n" * 50, "\x00 ÿ 74 °C"]
)
def test_garbage_is_worthless(text):
    assert quality(CURRY, text) < 0.02


def test_quality_of_an_unknown_prompt_is_an_error():
    unknown = [
        [],
        ask("Who wrote Hamlet?"),
        ask("chicken curry"),
        [{"role": "assistant", "content": "lentil stew for 2"}],
    ]

    assert [is_known(messages) for messages in [CURRY, *unknown]] == [True, False, False, False, False]
    with pytest.raises(ValueError, match="its quality is not known"):
        quality(unknown[1], GOOD)


def test_read_request_reads_the_last_message():
    messages = [
        {"role": "user", "content": "What can I cook with beef?"},
        {"role": "assistant", "content": "How about beef stew for 2, or beef pasta?"},
        {"role": "user", "content": "The beef pasta, please, for six. No nuts, please. I have 35 minutes."},
    ]

    request = read_request(messages)

    assert (request.dish.name, request.servings, request.diets, request.minutes) == ("beef pasta", 6, ("no nuts",), 35)
