from django.urls import path

from annotate import views

app_name = "annotate"
urlpatterns = [
    path("", views.projects, name="projects"),
    path("projects/<int:pk>/next/", views.next_comparison, name="next"),
    path("projects/<int:pk>/done/", views.done, name="done"),
    path("comparisons/<int:pk>/", views.compare, name="comparison"),
    path("comparisons/<int:pk>/skip/", views.skip, name="skip"),
]
