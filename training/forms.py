"""The forms that freeze and start. A run's form is made from its configuration's dataclass, field by field."""

import dataclasses
import uuid
from typing import Any

from django import forms

from annotate.models import Project
from training import export, promotion_queries, queries, references, services
from training.admin_pages import is_id
from training.alignment.config import CONFIGS, ConfigError
from training.models import PreferenceSet, TrainingRun

BASIC_FIELDS = {
    "reward_model": ("backbone", "num_epochs"),
    "learning_curve": ("backbone", "num_points", "num_epochs"),
    "evaluate": ("reward_model", "other_reward_model", "split"),
    "rejection_sampling": ("policy", "reward_model", "num_samples", "num_rounds"),
    "rlhf": ("policy", "reward_model", "algorithm", "beta", "num_steps"),
    "dpo": ("policy", "loss", "beta", "num_epochs"),
    "compare_policies": ("policies", "num_prompts", "num_samples"),
    "sft": ("policy", "responses", "num_epochs"),
    "score_comparisons": ("reward_models", "num_pairs"),
    "combine": ("members", "method", "incumbent"),
    "average_weights": ("models",),
}
IN_USE_FIELDS = {
    **{"rejection_sampling": "reward_model", "rlhf": "reward_model", "combine": "incumbent"},
}  # what the current reward model fills in
MAX_OFFERED_MEMBERS = 5
CHOSEN_FIELDS = {"members", "models", "policies"}  # not any will do: some cost money, some have another backbone
FILE_FIELDS = {"preferences", "examples"}  # a form names preference sets, never files on the server
THE_RUN = "Memory, speed and the run"
GROUPS = {
    "Data": ("aspect", "max_length", "num_seeds"),
    "Schedule": (
        *("num_epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "dropout"),
        *("eval_steps", "patience"),
    ),
    "Loss": ("loss", "ties", "margin", "label_smoothing", "centring", "length", "length_penalty"),
    "Annotators and noise": ("annotators", "flip_rate", "learn_flip_rate"),
    "Fitting and measuring": ("num_folds",),
    "Ways of combining": ("weights", "penalty", "constraint", "floor", "slope"),
    "Fusion": ("has_gate", "is_monotone", "prompt_encoder"),
}  # of a form's further settings; what none of them names stands under THE_RUN, at the end
POLICY_GROUPS = {
    "Data": ("aspect", "responses", "num_prompts"),
    "Sampling": (
        *("num_samples", "temperature", "top_p", "max_new_tokens", "max_length", "backend"),
        "generation_batch_size",
    ),
    "Rounds and shards": ("num_rounds", "num_shards"),
    "What is kept": (
        *("keep", "num_kept", "minimum_reward", "minimum_margin", "deduplicate", "mixed_in", "has_random_twin"),
    ),
    "Loss": ("loss", "flip_rate", "lists"),
    "KL to the reference policy": ("reference_policy", "beta", "kl_target", "kl_placement"),
    "Policy gradient": ("algorithm", "advantage_scale"),
    "Reward": ("reward_model", "normalise", "reward_clip", "length_penalty", "end_penalty"),
    "Several objectives": ("objective", "weights", "constraint", "floor"),
    "Guard against over-optimisation": (
        *("held_out_reward_model", "num_guards", "guard", "patience", "check_steps", "num_held_out_prompts"),
        "num_checked",
    ),
    "Schedule": ("num_steps", "num_epochs", "learning_rate", "batch_size", "packing"),
    "Weights and memory": ("lora_rank", "lora_alpha", "saved", "precision", "gradient_checkpointing", "sharding"),
}  # of runs that train or compare policies
POLICY_FORMS = {*TrainingRun.POLICY_KINDS, TrainingRun.Kind.COMPARE_POLICIES}
SHORT_NAMES = {
    "reward_model": "reward-model",
    "learning_curve": "learning-curve",
    "evaluate": "evaluation",
    "rejection_sampling": "best-of-n",
    "rlhf": "rlhf",
    "dpo": "dpo",
    "compare_policies": "policies",
    "sft": "sft",
    "score_comparisons": "guidance",
    "combine": "combination",
    "average_weights": "average",
}


class FreezeForm(forms.Form):
    project = forms.ModelChoiceField(Project.objects.none())
    name = forms.CharField(max_length=100, help_text="Unique in its project, without a slash.")
    train, validation, test = (
        forms.FloatField(min_value=0, max_value=1, initial=share) for share in services.FRACTIONS[:3]
    )
    guard = forms.FloatField(
        required=False,
        min_value=0,
        max_value=1,
        initial=services.FRACTIONS[3],
        help_text="Votes that are set aside: from them come the rewards that watch a policy while it is trained by "
        "another one. Without them it is watched by rewards from the few validation votes.",
    )
    seed = forms.IntegerField(initial=0, help_text="Draws which prompts go into which part.")

    is_weighted = forms.BooleanField(
        required=False,
        label="Weigh judgments",
        help_text="Tell each judgment how reliable its annotator is; runs with annotators=weights count by it.",
    )

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        projects = Project.objects.for_user(user)
        self.fields["project"].queryset = projects  # type: ignore[attr-defined]
        self.initial = {"name": f"set-{PreferenceSet.objects.count() + 1}", "project": projects.first(), **self.initial}

    def freeze(self) -> PreferenceSet | None:
        """The new preference set; nothing, and an error on the form, if there can be none."""
        cleaned = self.cleaned_data
        shares = [cleaned[split] for split in export.SPLITS]
        try:
            return services.freeze(
                project=cleaned["project"],
                name=cleaned["name"],
                seed=cleaned["seed"],
                fractions=shares if cleaned["guard"] else shares[:3],
                is_weighted=cleaned["is_weighted"],
                user=self.user,
            )
        except services.CannotFreeze as error:
            self.add_error(None, str(error))
            return None


class RunForm(forms.Form):
    """Starts a run of one kind. `key` makes a second press of the button find the first one's run.

    It works with a preference set, or where its kind needs one with a project as it stands.
    """

    key = forms.UUIDField(widget=forms.HiddenInput)
    name = forms.CharField(max_length=100, help_text="Later runs may name this one's model by it.")
    preference_set = forms.ModelChoiceField(PreferenceSet.objects.none(), help_text="Frozen judgments to work with.")
    project = forms.ModelChoiceField(Project.objects.none(), help_text="Whose open comparisons are to be ordered.")

    def __init__(self, *args: Any, kind: str, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind, self.user = kind, user
        sets = PreferenceSet.objects.for_user(user).select_related("project")
        projects = Project.objects.for_user(user)
        self.source, offered = ("project", projects) if kind in services.NEEDS_PROJECT else ("preference_set", sets)
        self.fields[self.source].queryset = offered  # type: ignore[attr-defined]
        del self.fields["preference_set" if self.source == "project" else "project"]
        self.config_names = [item.name for item in dataclasses.fields(CONFIGS[kind]) if item.name not in FILE_FIELDS]
        for item in dataclasses.fields(CONFIGS[kind]):
            if item.name in self.config_names:
                self.fields[item.name] = config_field(item, user, references.MODEL_FIELDS.get(item.name), kind)
        is_certain = self.is_bound or self.source in self.initial or len(set(sets.values_list("project"))) == 1
        self.initial = {"key": uuid.uuid4(), "name": _next_name(kind), self.source: offered.first(), **self.initial}
        if is_certain:  # else another project's set may be chosen yet
            self._offer_what_is_in_use()

    def _offer_what_is_in_use(self) -> None:
        field = IN_USE_FIELDS.get(self.kind)
        value = self[self.source].value()
        chosen = str(getattr(value, "pk", value))
        promotion = promotion_queries.current_for(chosen, self.user) if field and is_id(chosen) else None
        if field and promotion:
            self.initial.setdefault(field, promotion_queries.written(promotion, self.user))
            in_use = f"{promotion.run} is the current reward model of {promotion.project}."
            self.fields[field].help_text = f"{self.fields[field].help_text} {in_use}"

    @property
    def basic(self) -> list[forms.BoundField]:
        return [self[name] for name in ("name", self.source, *BASIC_FIELDS[self.kind])]

    @property
    def advanced(self) -> dict[str, list[forms.BoundField]]:
        """Further settings by heading."""
        left = [name for name in self.config_names if name not in BASIC_FIELDS[self.kind]]
        headings = POLICY_GROUPS if self.kind in POLICY_FORMS else GROUPS
        groups = {title: [self[name] for name in names if name in left] for title, names in headings.items()}
        named = {name for names in headings.values() for name in names}
        groups[THE_RUN] = [self[name] for name in left if name not in named]
        return {title: own for title, own in groups.items() if own}

    @property
    def shows_advanced(self) -> bool:
        """Whether something is wrong among the further settings, or a link has set one of them."""
        further = [field for own in self.advanced.values() for field in own]
        return any(field.errors or str(field.initial) != str(field.field.initial) for field in further)

    def start(self) -> TrainingRun | None:
        """The queued run; nothing, and an error on the form, if it cannot work."""
        values = {name: self.cleaned_data[name] for name in self.config_names}
        try:
            return services.create_run(
                kind=self.kind,
                name=self.cleaned_data["name"],
                values=values,
                preference_set=self.cleaned_data.get("preference_set"),
                project=self.cleaned_data.get("project"),
                user=self.user,
                key=self.cleaned_data["key"],
            )
        except ConfigError as error:
            field, _, message = str(error).partition(": ")
            self.add_error(field if field in self.fields else None, message or field)
            return None


def config_field(
    item: "dataclasses.Field[Any]", user: Any, taken: references.Taken | None = None, kind: str = ""
) -> forms.Field:
    """The form field of a configuration's field, with its help and its limits; `taken` where it names a model."""
    told = item.metadata
    common: dict[str, Any] = {"label": queries.words(item.name), "help_text": told["help"], "initial": item.default}
    limits = {"min_value": told["minimum"], "max_value": told["maximum"]}
    if taken is not None:
        return _model_field(kind, item.name, references.names_taken(taken, user), common)
    if told["choices"]:
        return forms.ChoiceField(choices=[(choice, choice) for choice in told["choices"]], **common)
    if item.type is bool:
        return forms.BooleanField(required=False, **common)
    if item.type is int:
        return forms.IntegerField(**limits, **common)
    if item.type is float:
        return forms.FloatField(**limits, **common)
    return forms.CharField(max_length=500, required=bool(item.default), **common)


def _model_field(kind: str, name: str, names: list[str], common: dict[str, Any]) -> forms.CharField:
    """Free text, for any folder or Hugging Face id, with the names of usable runs and members to choose from."""
    is_several, is_optional = references.names_several(kind, name), references.is_optional(kind, name)
    attributes = {"list": f"{name}-runs", "autocomplete": "off", "spellcheck": "false"}
    offered = names if name in references.ENSEMBLE_FIELDS else names[:1]
    is_left_empty = is_optional or name in CHOSEN_FIELDS
    common["initial"] = "" if is_left_empty else ", ".join(offered[:MAX_OFFERED_MEMBERS])
    field = forms.CharField(
        max_length=4000 if is_several else 500,
        required=not is_optional,
        widget=forms.TextInput(attrs=attributes),
        **common,
    )
    field.suggestions = names  # type: ignore[attr-defined]
    field.names_several = is_several  # type: ignore[attr-defined]
    return field


def _next_name(kind: str) -> str:
    return f"{SHORT_NAMES[kind]}-{TrainingRun.objects.filter(kind=kind).count() + 1}"
