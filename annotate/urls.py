from django.urls import path

from annotate import gold_views, lead_views, live_views, people_views, review_views, settings_views, token_views, views

app_name = "annotate"
urlpatterns = [
    path("", views.projects, name="projects"),
    path("projects/<int:pk>/next/", views.next_comparison, name="next"),
    path("projects/<int:pk>/done/", views.done, name="done"),
    path("projects/<int:pk>/mine/", views.mine, name="mine"),
    path("projects/<int:pk>/guidelines/", views.guidelines, name="guidelines"),
    path("projects/<int:pk>/live/", live_views.live_prompt, name="live"),
    path("battles/<int:pk>/", live_views.battle, name="battle"),
    path("comparisons/<int:pk>/", views.compare, name="comparison"),
    path("comparisons/<int:pk>/skip/", views.skip, name="skip"),
    path("comparisons/<int:pk>/flag/", views.flag, name="flag"),
    path("comparisons/<int:pk>/draft/", views.draft, name="draft"),
    path("join/<str:token>/", people_views.join, name="join"),
    path("projects/<int:pk>/people/", people_views.people_page, name="people"),
    path("projects/<int:pk>/people/<int:membership_pk>/", people_views.change_role, name="change_role"),
    path("projects/<int:pk>/people/<int:membership_pk>/remove/", people_views.remove_member, name="remove_member"),
    path(
        "projects/<int:pk>/invitations/<int:invitation_pk>/", people_views.revoke_invitation, name="revoke_invitation"
    ),
    path("projects/<int:pk>/standings/<int:standing_pk>/again/", people_views.ask_again, name="ask_again"),
    path("projects/<int:pk>/standings/<int:standing_pk>/open/", people_views.open_queue, name="open_queue"),
    path("projects/<int:pk>/gold/", gold_views.gold_list, name="gold"),
    path("projects/<int:pk>/gold/add/", gold_views.add_gold, name="add_gold"),
    path("projects/<int:pk>/gold/<int:gold_pk>/", gold_views.change_gold, name="change_gold"),
    path("projects/<int:pk>/gold/<int:gold_pk>/remove/", gold_views.remove_gold, name="remove_gold"),
    path("projects/<int:pk>/settings/", settings_views.project_settings, name="settings"),
    path("projects/<int:pk>/export/<str:format_name>/", settings_views.export, name="export"),
    path("projects/<int:pk>/review/", review_views.review_queue, name="review"),
    path("comparisons/<int:pk>/verdict/", review_views.verdict, name="verdict"),
    path("projects/<int:pk>/lead/", lead_views.overview, name="lead"),
    path("projects/<int:pk>/lead/agreement/", lead_views.agreement, name="lead_agreement"),
    path("projects/<int:pk>/lead/annotators/", lead_views.annotators, name="lead_annotators"),
    path("projects/<int:pk>/lead/models/", lead_views.models, name="lead_models"),
    path("projects/<int:pk>/lead/flags/", lead_views.flags, name="lead_flags"),
    path("projects/<int:pk>/lead/flags/<int:flag_pk>/resolve/", lead_views.resolve_flag, name="resolve_flag"),
    path("projects/<int:pk>/lead/fresh/", lead_views.fresh, name="lead_fresh"),
    path("account/tokens/", token_views.tokens, name="tokens"),
    path("account/tokens/<int:pk>/revoke/", token_views.revoke_token, name="revoke_token"),
]
