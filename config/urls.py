"""All URLs: annotators' pages, accounts, the API, and the admin."""

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import include, path
from django.views.decorators.cache import cache_control
from django.views.i18n import JavaScriptCatalog, set_language

from annotate.api import api

urlpatterns = [
    path("", include("annotate.urls")),
    path("login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("language/", set_language, name="set_language"),
    path(
        "jsi18n/<str:language>/",
        cache_control(max_age=3600, private=True)(JavaScriptCatalog.as_view(packages=["annotate"])),
        name="jsi18n",
    ),
    path("api/", api.urls),
    path("admin/", admin.site.urls),
]
