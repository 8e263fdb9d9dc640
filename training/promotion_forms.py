"""What a person fills in to promote a reward model."""

from typing import Any

from django import forms

from training.models import TrainingRun
from training.promotion_services import MAX_REASON


class PromotionForm(forms.Form):
    """`previous` is the promotion that the page showed as the newest: whoever promotes goes by what they saw."""

    run = forms.ModelChoiceField(TrainingRun.objects.none())
    previous = forms.IntegerField(required=False)
    reason = forms.CharField(required=False, max_length=MAX_REASON)

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["run"].queryset = TrainingRun.objects.for_user(user)  # type: ignore[attr-defined]
