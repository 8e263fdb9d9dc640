"""Forms about people: an invitation, a role, a token."""

from django import forms
from django.utils.translation import gettext_lazy as _

from annotate.models import ApiToken, Invitation, Membership

MAX_DAYS, MAX_USES = 90, 1000


class InviteForm(forms.ModelForm):
    max_uses = forms.IntegerField(
        min_value=1, max_value=MAX_USES, initial=1, label=_("Uses"), help_text=_("How many may join by it.")
    )
    days = forms.IntegerField(
        min_value=1, max_value=MAX_DAYS, initial=7, label=_("Days"), help_text=_("Until it expires.")
    )

    class Meta:
        model = Invitation
        fields = ("role", "note", "max_uses")
        labels = {"role": _("Role"), "note": _("Note")}  # noqa: RUF012 -- Django's way


class RoleForm(forms.Form):
    role = forms.ChoiceField(choices=Membership.Role.choices)


class TokenForm(forms.ModelForm):
    class Meta:
        model = ApiToken
        fields = ("name",)
        labels = {"name": _("Name")}  # noqa: RUF012 -- Django's way
