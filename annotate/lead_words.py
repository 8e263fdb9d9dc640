"""What a project's figures mean, in sentences. Every function takes what `annotate.figures` has kept."""

from dataclasses import dataclass
from datetime import date, timedelta
from math import ceil
from typing import Any

from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

SIGNIFICANT = 0.05
DASH = "\N{EN DASH}"
MAX_NAMED = 20
FAR_DAYS = 3650  # what takes longer than ten years has no date
RELIABLE, TENTATIVE = 0.8, 0.667  # Krippendorff's bounds

MEASURES: dict[str, tuple[Any, Any]] = {
    "raw": (gettext_lazy("Agreement"), gettext_lazy("how often two people say the same of a pair")),
    "alpha_nominal": (
        gettext_lazy("Krippendorff's alpha, nominal"),
        gettext_lazy("beyond chance, every difference counting the same"),
    ),
    "alpha_ordinal": (
        gettext_lazy("Krippendorff's alpha, ordinal"),
        gettext_lazy("beyond chance, a tie lying between the two sides"),
    ),
    "alpha_interval": (
        gettext_lazy("Krippendorff's alpha, interval"),
        gettext_lazy("beyond chance, opposite sides counting four times as much as a tie"),
    ),
    "fleiss_kappa": (
        gettext_lazy("Fleiss' kappa"),
        gettext_lazy("beyond chance, anybody against anybody"),
    ),
    "cohen_kappa": (
        gettext_lazy("Cohen's kappa"),
        gettext_lazy("beyond the chance of each two people, averaged over all who share comparisons"),
    ),
    "tau_b": (gettext_lazy("Kendall's tau-b"), gettext_lazy("of two orders of the same list: 1 the same, -1 reversed")),
    "w": (gettext_lazy("Kendall's W"), gettext_lazy("of all orders of the same list: 1 the same, 0 none in common")),
}
REASONS = {
    "too_fast": gettext_lazy("judged faster than anybody can read"),
    "same_side": gettext_lazy("chose the first answer far from half of the time"),
    "always_tied": gettext_lazy("said nearly always that answers are equal"),
    "one_pattern": gettext_lazy("switched sides in a pattern"),
}


@dataclass(frozen=True)
class MeasureRow:
    """One measure of agreement as a row of a table."""

    name: str
    meaning: str
    value: float
    low: float
    high: float


def percent(share: float | None, digits: int = 0) -> str:
    return DASH if share is None else f"{_number(100 * share, digits)} %"


def _number(value: float, digits: int = 0) -> str:
    return str(number_format(round(value, digits), digits))  # number_format alone cuts digits off


def forecast(values: dict[str, Any], counted_on: date) -> str:
    """When all that is wanted will be judged."""
    found = values["forecast"]
    if not values["num_wanted"]:
        return _("There is nothing to judge yet.")
    if values["num_judgments"] >= values["num_wanted"]:
        return _("All that is wanted is judged.")
    around = _days_ahead(found and found["days"], counted_on)
    if not around:
        return _("There is no forecast yet: it takes three whole days with judgments.")
    told = {"rate": _number(found["rate"], 1), "date": around}
    told |= {name: _days_ahead(found[name], counted_on) for name in ("earliest", "latest")}
    text = _("At %(rate)s judgments a day, as in the last days, all is judged around %(date)s;") % told
    if not told["latest"]:
        rest = _("not before %(earliest)s, and the days differ too much to say by when.") % told
    else:
        rest = _("probably between %(earliest)s and %(latest)s.") % told
    return f"{text} {rest}"


def _days_ahead(num_days: float | None, today: date) -> str:
    """The date so many days ahead; empty where there is none."""
    if num_days is None or num_days > FAR_DAYS:
        return ""
    return date_format(today + timedelta(days=ceil(num_days)), "DATE_FORMAT")


def time_per_judgment(found: dict[str, float] | None) -> str:
    """From the quartiles of the active time."""
    if not found:
        return _("How long judgments take is not known yet.")
    told = {name: _number(found[name], 0 if found[name] >= 10 else 1) for name in ("low", "median", "high")}
    return (
        _(
            "A judgment takes %(median)s seconds (median, idle time taken out); "
            "a quarter takes less than %(low)s and a quarter more than %(high)s."
        )
        % told
    )


def agreement(aspect: dict[str, Any] | None) -> str:
    """How often two people agree, and what that is beyond chance."""
    measures = (aspect or {}).get("agreement", {})
    raw, alpha = measures.get("raw"), measures.get("alpha_ordinal")
    if not raw:
        return _("No two people have judged the same comparison yet, so agreement is not known.")
    text = _("Two people say the same of a pair %(raw)s of the time (95 %% interval: %(low)s to %(high)s).") % {
        "raw": percent(raw["value"]),
        "low": percent(raw["low"]),
        "high": percent(raw["high"]),
    }
    return f"{text} {beyond_chance(alpha)}".strip()


def beyond_chance(alpha: dict[str, float] | None) -> str:
    """What Krippendorff's alpha says, judged by the interval's lower end so that few judgments promise nothing."""
    if not alpha:
        return ""
    if alpha["low"] >= RELIABLE:
        return _("That is reliable.")
    if alpha["low"] >= TENTATIVE:
        return _("That is enough for tentative conclusions.")
    if alpha["high"] < 0:
        return _("That is less than chance: some people have the question upside down.")
    if alpha["low"] <= 0:
        return _("That cannot be told from chance.")
    return _("That is more than chance, but people differ in much: ask several for each comparison.")


def ceiling(found: dict[str, Any] | None) -> str:
    """The interval in which the best possible accuracy lies."""
    if not found:
        return _("The human ceiling is not known yet: it takes ten comparisons that two people decided.")
    told = {"low": percent(found["low"]), "high": percent(found["high"]), "num": _number(found["num_items"])}
    text = _(
        "The human ceiling: since people differ, the best possible model agrees with a further person "
        "between %(low)s and %(high)s of the time (from %(num)s comparisons)."
    )
    return text % told


def position(found: dict[str, Any] | None) -> str:
    if not found:
        return _("Whether the place of an answer sways people is not known yet.")
    told = _share_words(found)
    if found["p_value"] < SIGNIFICANT:
        return _("The answer shown first won %(value)s of the time (%(low)s to %(high)s): its place sways people.") % (
            told
        )
    return _("The answer shown first won %(value)s of the time (%(low)s to %(high)s): no sign that place sways.") % told


def length(found: dict[str, Any] | None) -> str:
    if not found:
        return _("Whether people prefer longer answers is not known yet.")
    told = _share_words(found)
    if found["p_value"] >= SIGNIFICANT:
        return _("The longer answer won %(value)s of the time (%(low)s to %(high)s): no sign that length counts.") % (
            told
        )
    return _(
        "The longer answer won %(value)s of the time (%(low)s to %(high)s). Longer answers may be better; "
        "a reward model will learn to prefer length all the same."
    ) % (told)


def mirrored(found: dict[str, Any] | None) -> str:
    if not found:
        return _("No comparison has been judged in both of two mirrored orders yet.")
    return _(
        "Of pairs that two people saw in mirrored order, the same answer won %(value)s of the time "
        "(%(low)s to %(high)s)."
    ) % _share_words(found)


def suspicion(found: dict[str, Any]) -> str:
    told = {"what": REASONS.get(found["reason"], found["reason"]), "value": percent(found["value"])}
    return _("%(what)s (%(value)s of their judgments)") % told


def reliability(found: dict[str, Any], names: dict[int, str]) -> list[str]:
    """Who answers the wrong way round or by chance, or why this cannot be told."""
    if found.get("is_refused"):
        told = {"good": found["num_good"], "liars": found["num_liars"]}
        text = _(
            "Who is reliable cannot be told from the judgments: %(good)s annotators agree with one side and "
            "%(liars)s with its mirror image, and either could be right."
        )
        return [text % told]
    if not found.get("is_told"):
        return [_("Who is reliable is told once three people have judged the same comparisons.")]
    return [_liars(found["liars"], names), *_by_chance(found["by_chance"], names)]


def _liars(pks: list[int], names: dict[int, str]) -> str:
    if not pks:
        return _("Nobody is found to answer the wrong way round.")
    told = {"names": _listed(pks, names)}
    return (
        ngettext(
            "%(names)s answers the wrong way round: what they prefer, the others reject.",
            "%(names)s answer the wrong way round: what they prefer, the others reject.",
            len(pks),
        )
        % told
    )


def _by_chance(pks: list[int], names: dict[int, str]) -> list[str]:
    if not pks:
        return []
    told = {"names": _listed(pks, names)}
    return [ngettext("%(names)s cannot be told from chance.", "%(names)s cannot be told from chance.", len(pks)) % told]


def _listed(pks: list[int], names: dict[int, str]) -> str:
    """Names up to a number that can still be read."""
    text = ", ".join(names.get(pk, str(pk)) for pk in pks[:MAX_NAMED])
    return (
        text
        if len(pks) <= MAX_NAMED
        else _("%(names)s and %(num)s more")
        % {
            "names": text,
            "num": len(pks) - MAX_NAMED,
        }
    )


def measures(aspect: dict[str, Any]) -> list[MeasureRow]:
    """The measures that are defined, in the order of the page."""
    found = aspect["agreement"]
    return [
        MeasureRow(str(name), str(meaning), **found[key]) for key, (name, meaning) in MEASURES.items() if found.get(key)
    ]


def _share_words(found: dict[str, Any]) -> dict[str, str]:
    return {name: percent(found[name]) for name in ("value", "low", "high")}
