"""An account's API tokens: made, shown once, taken back."""

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from annotate.models import ApiToken
from annotate.people_forms import TokenForm
from annotate.people_views import get_or_post
from annotate.tokens import new_token
from annotate.views import HttpRequest, signed_in


@get_or_post
@signed_in
def tokens(request: HttpRequest) -> HttpResponse:
    form = TokenForm(request.POST or None)
    secret = None
    if form.is_valid():
        secret, digest = new_token()
        ApiToken.objects.create(user=request.user, digest=digest, **form.cleaned_data)
        form = TokenForm()
    mine = ApiToken.objects.filter(user=request.user, is_revoked=False)
    return render(request, "annotate/account/tokens.html", {"form": form, "secret": secret, "tokens": mine})


@require_POST
@signed_in
def revoke_token(request: HttpRequest, pk: int) -> HttpResponse:
    token = get_object_or_404(ApiToken, pk=pk, user=request.user)
    ApiToken.objects.filter(pk=token.pk).update(is_revoked=True)
    return redirect("annotate:tokens")
