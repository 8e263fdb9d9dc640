"""What a preference is made of: projects, prompts, responses, comparisons and judgments.

Constraints are the judge, code is only the fast path: whatever happens at once, a comparison never holds
more judgments and live leases than it wants, and nobody judges the same comparison twice.
"""

import uuid
from typing import Any, Self

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.crypto import salted_hmac

from annotate.identity import messages_digest, response_digest

MIN_RESPONSES, MAX_RESPONSES = 2, 24
OVERALL = "overall"


def _count(model: type[models.Model]) -> Coalesce:
    """How many rows of `model` the project in the outer query has."""
    rows = model._default_manager.filter(project=models.OuterRef("pk")).order_by().values("project")
    return Coalesce(models.Subquery(rows.annotate(num=models.Count("pk")).values("num")), 0)


class ProjectQuerySet(models.QuerySet["Project"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """Projects this user may see: all for staff with the permission, else open ones and memberships."""
        if not isinstance(user, User) or not user.is_active:
            return self.none()
        if user.is_staff and user.has_perm("annotate.view_project"):
            return self
        return self.filter(Q(is_open=True) | Q(pk__in=Membership.objects.filter(user=user).values("project")))

    def with_counts(self) -> Self:
        """With num_comparisons and num_judgments of each project."""
        return self.annotate(num_comparisons=_count(Comparison), num_judgments=_count(Judgment))


class Project(models.Model):
    name = models.CharField(max_length=100, unique=True)
    description = models.TextField(blank=True)
    guidelines = models.TextField(blank=True, help_text="What annotators should look for. Markdown.")
    overlap = models.PositiveSmallIntegerField(default=1, help_text="Judgments wanted for each comparison.")
    lease_minutes = models.PositiveSmallIntegerField(
        default=15, help_text="How long a comparison waits for its annotator."
    )
    is_open = models.BooleanField(default=True, help_text="Every account may judge; otherwise members only.")
    is_demonstration = models.BooleanField(default=False, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    members: "models.ManyToManyField[Any, Any]" = models.ManyToManyField(
        settings.AUTH_USER_MODEL, through="Membership", related_name="projects"
    )

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (models.CheckConstraint(condition=Q(overlap__gte=1), name="project_overlap_positive"),)

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("project", "user"), name="membership_once"),)

    def __str__(self) -> str:
        return f"{self.user} in {self.project}"


class Prompt(models.Model):
    """What a model was shown: chat messages `[{"role", "content"}, …]`, kept verbatim."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    messages: Any = models.JSONField()
    digest = models.CharField(max_length=64, editable=False)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("project", "digest"), name="prompt_once"),)

    def __str__(self) -> str:
        return str(self.messages[-1]["content"])[:80] if self.messages else ""

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.digest = messages_digest(self.messages)
        super().save(*args, **kwargs)


class Response(models.Model):
    """What one model answered. `copy` tells apart equal answers that one row lists twice."""

    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="responses")
    content = models.TextField()
    model = models.CharField(max_length=200, blank=True, help_text="Which model answered; never shown to annotators.")
    copy = models.PositiveSmallIntegerField(default=0)
    digest = models.CharField(max_length=64, editable=False)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("prompt", "digest"), name="response_once"),)

    def __str__(self) -> str:
        return self.content[:80]

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.digest = response_digest(self.content, self.model, self.copy)
        super().save(*args, **kwargs)


class ComparisonQuerySet(models.QuerySet["Comparison"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        return self.filter(project__in=Project.objects.for_user(user))

    def open_to(self, annotator: "Annotator") -> Self:
        """Comparisons with a free place that this annotator has neither judged, skipped nor leased."""
        mine = {"comparison": models.OuterRef("pk"), "annotator": annotator}
        return self.filter(
            ~models.Exists(Judgment.objects.filter(**mine)),
            ~models.Exists(Skip.objects.filter(**mine)),
            ~models.Exists(Lease.objects.filter(**mine)),
            num_taken__lt=F("num_wanted"),
        )


class Comparison(models.Model):
    """One prompt with K responses put before annotators; pairwise when K = 2, listwise otherwise.

    `num_taken` counts judgments (except extra ones) and leases; the check constraint is what makes surplus
    judgments impossible.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="comparisons")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="comparisons")
    responses: "models.ManyToManyField[Any, Any]" = models.ManyToManyField(
        Response, through="Option", related_name="comparisons"
    )
    digest = models.CharField(max_length=64, editable=False)
    num_responses = models.PositiveSmallIntegerField()
    num_wanted = models.PositiveSmallIntegerField(default=1)
    num_taken = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ComparisonQuerySet.as_manager()

    class Meta:
        ordering = ("id",)
        constraints = (
            models.UniqueConstraint(fields=("project", "digest"), name="comparison_once"),
            models.CheckConstraint(condition=Q(num_taken__lte=F("num_wanted")), name="comparison_no_surplus"),
            models.CheckConstraint(
                condition=Q(num_responses__gte=MIN_RESPONSES, num_responses__lte=MAX_RESPONSES),
                name="comparison_num_responses",
            ),
        )
        indexes = (
            models.Index(fields=("project", "id"), condition=Q(num_taken__lt=F("num_wanted")), name="comparison_open"),
        )

    def __str__(self) -> str:
        return f"Comparison {self.pk}"

    @property
    def is_pairwise(self) -> bool:
        return self.num_responses == 2


class Option(models.Model):
    """A response's place in a comparison, in the order of the source; never the order shown."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="options")
    response = models.ForeignKey(Response, on_delete=models.PROTECT, related_name="options")
    position = models.PositiveSmallIntegerField()

    class Meta:
        ordering = ("position",)
        constraints = (
            models.UniqueConstraint(fields=("comparison", "response"), name="option_response_once"),
            models.UniqueConstraint(fields=("comparison", "position"), name="option_position_once"),
        )

    def __str__(self) -> str:
        return f"{self.comparison} #{self.position}"


class Annotator(models.Model):
    """Who judges: a person with an account, a pseudonym from an imported file, or a simulation."""

    class Kind(models.TextChoices):
        PERSON = "person"
        IMPORTED = "imported"
        SIMULATED = "simulated"

    kind = models.CharField(max_length=10, choices=Kind)
    user = models.OneToOneField(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT)
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.CASCADE)
    name = models.CharField(max_length=200)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("project", "kind", "name"), condition=Q(project__isnull=False), name="annotator_once"
            ),
            models.CheckConstraint(
                condition=Q(kind="person", user__isnull=False, project__isnull=True)
                | Q(kind__in=("imported", "simulated"), user__isnull=True, project__isnull=False),
                name="annotator_person_has_account",
            ),
        )

    def __str__(self) -> str:
        return self.name if self.kind == self.Kind.PERSON else f"{self.name} ({self.kind})"


class Lease(models.Model):
    """A comparison held for one annotator until `expires_at`; it counts in the comparison's `num_taken`."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="leases")
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    shown_order: Any = models.JSONField(help_text="Response ids from left to right, drawn for this annotator.")
    leased_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "annotator"), name="lease_once"),)
        indexes = (
            models.Index(fields=("project", "expires_at"), name="lease_expiry"),
            models.Index(fields=("annotator", "project"), name="lease_of_annotator"),
        )

    def __str__(self) -> str:
        return f"{self.comparison} for {self.annotator}"

    @staticmethod
    def key_for(comparison_id: int, annotator_id: int) -> uuid.UUID:
        """What a judgment's key is when it comes from the page: only this server can have made it."""
        mac = salted_hmac("annotate.Lease", f"{comparison_id} {annotator_id}", algorithm="sha256")
        return uuid.UUID(bytes=mac.digest()[:16])

    @property
    def key(self) -> uuid.UUID:
        return self.key_for(self.comparison_id, self.annotator_id)


class Skip(models.Model):
    """An annotator's decision not to judge a comparison; it is not offered to them again."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="skips")
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "annotator"), name="skip_once"),)

    def __str__(self) -> str:
        return f"{self.comparison} skipped by {self.annotator}"


class Judgment(models.Model):
    """One annotator's answer to one comparison.

    `ranking` holds response ids, best first, ties as groups: `[[12], [10, 11]]`. `key` is drawn by the page, so
    that a submit sent twice is stored once. `repeat` is above zero only in imported files, where an annotator
    may have judged the same responses again.
    """

    class Source(models.TextChoices):
        BROWSER = "browser"
        IMPORT = "import"
        SIMULATION = "simulation"

    class Strength(models.IntegerChoices):
        SLIGHTLY = 1, "slightly better"
        STRONGLY = 2, "strongly better"

    comparison = models.ForeignKey(Comparison, on_delete=models.PROTECT, related_name="judgments")
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="judgments")
    annotator = models.ForeignKey(Annotator, on_delete=models.PROTECT, related_name="judgments")
    aspect = models.CharField(max_length=100, default=OVERALL)
    repeat = models.PositiveSmallIntegerField(default=0)
    ranking: Any = models.JSONField()
    strength = models.PositiveSmallIntegerField(null=True, blank=True, choices=Strength)
    is_all_bad = models.BooleanField(default=False, help_text="None of the responses is acceptable.")
    is_extra = models.BooleanField(
        default=False, help_text="Came after the comparison had all it wanted; kept, not counted."
    )
    shown_order: Any = models.JSONField(null=True, blank=True)
    seconds = models.FloatField(null=True, blank=True)
    source = models.CharField(max_length=10, choices=Source)
    key = models.UUIDField(default=uuid.uuid4, unique=True)
    import_key = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001 -- null means not imported, and nulls differ
    row_id = models.CharField(max_length=200, blank=True, help_text="What the imported file called it.")
    meta: Any = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = (
            models.UniqueConstraint(fields=("comparison", "annotator", "aspect", "repeat"), name="judgment_once"),
            models.UniqueConstraint(fields=("project", "import_key"), name="judgment_imported_once"),
            models.CheckConstraint(
                condition=Q(repeat=0) | Q(import_key__isnull=False), name="judgment_repeat_is_imported"
            ),
            models.CheckConstraint(
                condition=Q(strength__isnull=True) | Q(strength__in=(1, 2)), name="judgment_strength"
            ),
        )
        indexes = (models.Index(fields=("project", "annotator", "id"), name="judgment_of_annotator"),)

    def __str__(self) -> str:
        return f"Judgment {self.pk}"
