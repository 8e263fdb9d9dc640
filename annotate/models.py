"""What a preference is made of: projects, prompts, responses, comparisons and judgments.

Constraints are the judge, code is only the fast path: whatever happens at once, a comparison never holds
more judgments and live leases than it wants, and nobody judges the same comparison twice.

What is said about judgments stands beside them, never over them: revisions keep what was answered before, a
reviewer's verdict is a row of its own, consensus and figures can be thrown away and computed again.
"""

import random
import uuid
from typing import Any, Self

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from annotate.identity import messages_digest, response_digest

MIN_RESPONSES, MAX_RESPONSES = 2, 24
OVERALL = "overall"
GOLD_PLACES = 30_000  # a gold comparison has room for everybody
MAX_SHUFFLE = 2**31 - 1


def draw_shuffle() -> int:
    return random.randrange(MAX_SHUFFLE)


def _share(default: float, help_text: Any) -> Any:
    return models.FloatField(
        default=default, validators=[MinValueValidator(0.0), MaxValueValidator(1.0)], help_text=help_text
    )


def _count(rows: "models.QuerySet[Any]") -> Coalesce:
    """How many of `rows` belong to the project in the outer query."""
    rows = rows.filter(project=models.OuterRef("pk")).order_by().values("project")
    return Coalesce(models.Subquery(rows.annotate(num=models.Count("pk")).values("num")), 0)


class ProjectQuerySet(models.QuerySet["Project"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """Projects this user may see: all for staff with the permission, else open ones and memberships."""
        if not isinstance(user, User) or not user.is_active:
            return self.none()
        if user.is_staff and user.has_perm("annotate.view_project"):
            return self
        return self.filter(Q(is_open=True) | Q(pk__in=Membership.objects.filter(user=user).values("project")))

    def led_by(self, user: AbstractBaseUser | AnonymousUser, *roles: str) -> Self:
        """Projects in which this user has one of `roles`; staff who may change projects are managers everywhere."""
        if not isinstance(user, User) or not user.is_active:
            return self.none()
        if user.is_staff and user.has_perm("annotate.change_project"):
            return self
        return self.filter(pk__in=Membership.objects.filter(user=user, role__in=roles).values("project"))

    def with_counts(self) -> Self:
        """With num_comparisons and num_judgments of each project, those with a known answer left out."""
        return self.annotate(
            num_comparisons=_count(Comparison.objects.filter(is_gold=False)),
            num_judgments=_count(Judgment.objects.filter(comparison__is_gold=False)),
        )


class Project(models.Model):
    class Kind(models.TextChoices):
        RANKING = "ranking", _("put responses in order")
        BEST = "best", _("choose the best response")
        RATING = "rating", _("rate each response on a scale")

    class Strategy(models.TextChoices):
        IN_ORDER = "in_order", _("in order")
        RANDOM = "random", _("random")
        INFORMATIVE = "informative", _("most informative first")

    name = models.CharField(max_length=100, unique=True)
    description = models.TextField(blank=True)
    guidelines = models.TextField(blank=True, help_text=_("What annotators should look for. Markdown."))
    guidelines_version = models.PositiveIntegerField(default=0, editable=False)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.RANKING, help_text=_("What annotators do."))
    rating_max = models.PositiveSmallIntegerField(
        default=5,
        validators=[MinValueValidator(2), MaxValueValidator(10)],
        help_text=_("Highest rating; the lowest is 1."),
    )
    overlap = models.PositiveSmallIntegerField(default=1, help_text=_("Judgments wanted for each comparison."))
    lease_minutes = models.PositiveSmallIntegerField(
        default=15, help_text=_("How long a comparison waits for its annotator.")
    )
    strategy = models.CharField(
        max_length=12, choices=Strategy, default=Strategy.IN_ORDER, help_text=_("Which comparison comes next.")
    )
    random_share = _share(0.2, _("Share asked at random although the most informative go first."))
    mirror_share = _share(0.1, _("Share of comparisons shown to one annotator as the mirror image of another's."))
    gold_rate = _share(0.0, _("Share of comparisons with a known answer mixed in."))
    gold_feedback = models.BooleanField(
        default=False, help_text=_("Tell annotators the known answer after they have judged.")
    )
    qualification_size = models.PositiveSmallIntegerField(
        default=0, help_text=_("Comparisons with a known answer to judge before the queue opens; 0: none.")
    )
    qualification_accuracy = _share(0.7, _("Share of them to get right."))
    is_open = models.BooleanField(default=True, help_text=_("Every account may judge; otherwise members only."))
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

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Guidelines that have changed are kept as a further version."""
        fields = kwargs.get("update_fields")
        if fields is not None and "guidelines" not in fields:
            return super().save(*args, **kwargs)
        with transaction.atomic():
            latest = self.guidelines_texts.order_by("version").last() if self.pk else None
            is_new = self.guidelines != (latest.text if latest else "")
            if is_new:
                self.guidelines_version = latest.version + 1 if latest else 1
                kwargs |= {} if fields is None else {"update_fields": {*fields, "guidelines_version"}}
            super().save(*args, **kwargs)
            if is_new:
                self.guidelines_texts.create(version=self.guidelines_version, text=self.guidelines)


class Guidelines(models.Model):
    """One version of a project's guidelines; judgments say under which they were made."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="guidelines_texts")
    version = models.PositiveIntegerField()
    text = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("version",)
        constraints = (models.UniqueConstraint(fields=("project", "version"), name="guidelines_once"),)
        verbose_name_plural = "guidelines"

    def __str__(self) -> str:
        return f"{self.project}, version {self.version}"


class Aspect(models.Model):
    """Something that is judged besides the overall order, such as harmlessness, with its own text."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="aspects")
    name = models.SlugField(max_length=100)
    text = models.TextField(blank=True, help_text=_("What annotators should look for. Markdown."))
    position = models.PositiveSmallIntegerField(default=0)
    is_asked = models.BooleanField(default=True, help_text=_("Asked with every comparison."))

    class Meta:
        ordering = ("position", "pk")
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="aspect_once"),
            models.CheckConstraint(condition=~Q(name=OVERALL), name="aspect_not_overall"),
        )

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    class Role(models.TextChoices):
        ANNOTATOR = "annotator", _("annotator")
        REVIEWER = "reviewer", _("reviewer")
        MANAGER = "manager", _("manager")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    role = models.CharField(max_length=10, choices=Role, default=Role.ANNOTATOR)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("project", "user"), name="membership_once"),)

    def __str__(self) -> str:
        return f"{self.user} in {self.project}"


class InvitationQuerySet(models.QuerySet["Invitation"]):
    def open(self) -> Self:
        """Those by which somebody can still join."""
        return self.filter(is_revoked=False, expires_at__gt=timezone.now(), num_uses__lt=F("max_uses"))


class Invitation(models.Model):
    """A link that makes whoever opens it a member. Only the digest of its secret is stored."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="invitations")
    role = models.CharField(max_length=10, choices=Membership.Role, default=Membership.Role.ANNOTATOR)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    note = models.CharField(max_length=200, blank=True, help_text=_("For whom it is."))
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    max_uses = models.PositiveSmallIntegerField(default=1)
    num_uses = models.PositiveSmallIntegerField(default=0)
    is_revoked = models.BooleanField(default=False)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        ordering = ("-pk",)
        constraints = (
            models.CheckConstraint(condition=Q(num_uses__lte=F("max_uses")), name="invitation_not_overused"),
        )

    def __str__(self) -> str:
        return f"Invitation {self.pk} to {self.project}"

    @property
    def is_open(self) -> bool:
        return not self.is_revoked and self.expires_at > timezone.now() and self.num_uses < self.max_uses


class Prompt(models.Model):
    """What a model was shown: chat messages `[{"role", "content"}, …]`, kept verbatim."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    messages: Any = models.JSONField()
    author = models.ForeignKey(
        "Annotator", null=True, blank=True, on_delete=models.SET_NULL, help_text=_("Who wrote it, on the live page.")
    )
    digest = models.CharField(max_length=64, editable=False)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("project", "digest"), name="prompt_once"),)

    def __str__(self) -> str:
        return str(self.messages[-1]["content"])[:80] if self.messages else ""

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.digest = messages_digest(self.messages)
        super().save(*args, **kwargs)


class Response(models.Model):
    """What one model answered, or an annotator's better answer: then it has an author and no model.

    `copy` tells apart equal answers that one row lists twice. `giveaway` holds the words with which the text names
    its model, so that a lead sees where annotators could tell.
    """

    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="responses")
    content = models.TextField()
    model = models.CharField(max_length=200, blank=True, help_text="Which model answered; never shown to annotators.")
    copy = models.PositiveSmallIntegerField(default=0)
    author = models.ForeignKey("Annotator", null=True, blank=True, on_delete=models.SET_NULL, related_name="responses")
    edited_from = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="edits")
    giveaway = models.CharField(max_length=100, blank=True)
    digest = models.CharField(max_length=64, editable=False)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("prompt", "digest"), name="response_once"),)

    def __str__(self) -> str:
        return self.content[:80]

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.digest = self.make_digest()
        super().save(*args, **kwargs)

    def make_digest(self) -> str:
        return response_digest(self.content, self.model, self.copy)


class ComparisonQuerySet(models.QuerySet["Comparison"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        return self.filter(project__in=Project.objects.for_user(user))

    def open_to(self, annotator: "Annotator") -> Self:
        """Comparisons with a free place that this annotator has neither judged, skipped nor leased; gold ones too.

        Nobody judges what they wrote themselves.
        """
        mine = {"comparison": models.OuterRef("pk"), "annotator": annotator}
        written = Option.objects.filter(comparison=models.OuterRef("pk"), response__author=annotator)
        return self.filter(
            ~models.Exists(written),
            ~models.Exists(Judgment.objects.filter(**mine)),
            ~models.Exists(Skip.objects.filter(**mine)),
            ~models.Exists(Lease.objects.filter(**mine)),
            num_taken__lt=F("num_wanted"),
        )


OPEN = Q(num_taken__lt=F("num_wanted"), is_gold=False)


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
    is_gold = models.BooleanField(default=False, help_text=_("Its answer is known; it stands outside the queue."))
    is_trial = models.BooleanField(
        default=False,
        help_text=_("Part of a test: neither guidance nor overlap changes when and how often it is asked."),
    )
    is_closed = models.BooleanField(
        default=False, help_text=_("Nobody is asked any more: a place that is given up is gone.")
    )
    shuffle = models.PositiveIntegerField(default=draw_shuffle, editable=False)
    priority = models.FloatField(default=0.0, help_text=_("The most informative have the highest."))
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
            models.Index(fields=("project", "id"), condition=OPEN, name="comparison_open"),
            models.Index(fields=("project", "shuffle", "id"), condition=OPEN, name="comparison_open_random"),
            models.Index(fields=("project", "-priority", "shuffle"), condition=OPEN, name="comparison_open_priority"),
            models.Index(fields=("project", "shuffle"), condition=Q(is_gold=True), name="comparison_gold"),
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


class Gold(models.Model):
    """The known answer to a comparison: to measure annotators, to qualify them, or as an example in the guidelines."""

    class Use(models.TextChoices):
        MIXED = "mixed", _("mixed into the queue")
        QUALIFICATION = "qualification", _("asked before the queue opens")
        EXAMPLE = "example", _("worked example in the guidelines")

    comparison = models.OneToOneField(Comparison, on_delete=models.CASCADE, related_name="gold")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="golds")
    ranking: Any = models.JSONField(help_text=_("Response ids, best first, ties as groups."))
    explanation = models.TextField(blank=True, help_text=_("Why. Markdown."))
    use = models.CharField(max_length=13, choices=Use, default=Use.MIXED)

    class Meta:
        verbose_name_plural = "gold"
        indexes = (models.Index(fields=("project", "use"), name="gold_use"),)

    def __str__(self) -> str:
        return f"Gold for {self.comparison}"


class Standing(models.Model):
    """Where an annotator stands in a project; its row is the lock under which they lease and judge."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="standings")
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE, related_name="standings")
    num_judged = models.PositiveIntegerField(default=0)
    num_gold = models.PositiveIntegerField(default=0)
    gold_score = models.FloatField(default=0.0, help_text=_("Sum of the scores, each 0 to 1."))
    last_comparison = models.ForeignKey(Comparison, null=True, on_delete=models.SET_NULL, related_name="+")
    qualified_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("project", "annotator"), name="standing_once"),)

    def __str__(self) -> str:
        return f"{self.annotator} in {self.project}"


class Mirror(models.TextChoices):
    """How an order was drawn: for the annotator alone, or as one of two that are each other's mirror image."""

    OWN = "", _("drawn for the annotator")
    STRAIGHT = "straight", _("straight")
    MIRRORED = "mirrored", _("mirrored")


class Lease(models.Model):
    """A comparison held for one annotator until `expires_at`; it counts in the comparison's `num_taken`."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="leases")
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    fresh_standing: "Standing | None" = None  # of a lease just made: what its page would else have to read
    shown_order: Any = models.JSONField(help_text=_("Response ids from left to right, drawn for this annotator."))
    mirror = models.CharField(max_length=8, choices=Mirror, default=Mirror.OWN, blank=True)
    guidelines_version = models.PositiveIntegerField(default=0)
    is_random = models.BooleanField(default=False, help_text=_("Asked by chance, whatever would tell most."))
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

    @cached_property
    def contents(self) -> dict[int, str]:
        """The responses' texts by their ids."""
        return dict(Response.objects.filter(pk__in=self.shown_order).values_list("pk", "content"))

    @staticmethod
    def key_for(comparison_id: int, annotator_id: int, mirror: str = Mirror.OWN) -> uuid.UUID:
        """What a judgment's key is when it comes from the page: only this server can have made it."""
        mac = salted_hmac("annotate.Lease", f"{comparison_id} {annotator_id} {mirror}".rstrip(), algorithm="sha256")
        return uuid.UUID(bytes=mac.digest()[:16])

    @property
    def key(self) -> uuid.UUID:
        return self.key_for(self.comparison_id, self.annotator_id, self.mirror)


class Draft(models.Model):
    """What an annotator has entered on a page and not sent yet, as the page's script wrote it."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="drafts")
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    values: Any = models.JSONField(default=dict)
    saved_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "annotator"), name="draft_once"),)

    def __str__(self) -> str:
        return f"Draft for {self.comparison} by {self.annotator}"


class Skip(models.Model):
    """An annotator's decision not to judge a comparison; it is not offered to them again."""

    class Reason(models.TextChoices):
        NONE = "", _("no reason given")
        EXPERTISE = "expertise", _("I do not know enough about it")
        LANGUAGE = "language", _("I do not know the language")
        UPSETTING = "upsetting", _("I do not want to read this")
        UNCLEAR = "unclear", _("the prompt is unclear")
        BROKEN = "broken", _("something is shown wrongly")
        OTHER = "other", _("something else")

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="skips")
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    reason = models.CharField(max_length=10, choices=Reason, default=Reason.NONE, blank=True)
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "annotator"), name="skip_once"),)

    def __str__(self) -> str:
        return f"{self.comparison} skipped by {self.annotator}"


class Flag(models.Model):
    """What an annotator wants a lead to look at; the comparison stays theirs to judge."""

    class Reason(models.TextChoices):
        HARMFUL = "harmful", _("harmful or illegal content")
        PRIVATE = "private", _("private data")
        IDENTITY = "identity", _("a model names itself")
        BROKEN = "broken", _("broken or empty text")
        DUPLICATE = "duplicate", _("the responses are the same")
        OTHER = "other", _("something else")

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="flags")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="flags")
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    reason = models.CharField(max_length=10, choices=Reason)
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "annotator", "reason"), name="flag_once"),)
        indexes = (models.Index(fields=("project", "resolved_at", "id"), name="flag_unresolved"),)

    def __str__(self) -> str:
        return f"{self.comparison} flagged by {self.annotator}"


class Judgment(models.Model):
    """One annotator's answer to one comparison.

    `ranking` holds response ids, best first, ties as groups: `[[12], [10, 11]]`. `key` is drawn by the page, so
    that a submit sent twice is stored once. `repeat` is above zero only in imported files, where an annotator
    may have judged the same responses again. What was answered for an aspect is a judgment of its own, stored
    together with the overall one. A better response that the annotator wrote stands first in the ranking although
    it is none of the comparison's.
    """

    class Placement(models.TextChoices):
        UNKNOWN = "", _("not told")
        PLACED = "placed", _("every response was placed by an action")
        CONFIRMED = "confirmed", _("the order shown was confirmed")

    class Source(models.TextChoices):
        BROWSER = "browser"
        API = "api"
        IMPORT = "import"
        SIMULATION = "simulation"

    class Strength(models.IntegerChoices):
        SLIGHTLY = 1, _("slightly better")
        STRONGLY = 2, _("much better")

    comparison = models.ForeignKey(Comparison, on_delete=models.PROTECT, related_name="judgments")
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="judgments")
    annotator = models.ForeignKey(Annotator, on_delete=models.PROTECT, related_name="judgments")
    aspect = models.CharField(max_length=100, default=OVERALL)
    repeat = models.PositiveSmallIntegerField(default=0)
    kind = models.CharField(max_length=10, choices=Project.Kind, default=Project.Kind.RANKING)
    ranking: Any = models.JSONField()
    bad: Any = models.JSONField(default=list, blank=True, help_text=_("Ids of responses that are not acceptable."))
    ratings: Any = models.JSONField(null=True, blank=True, help_text=_("Response id to rating."))
    strength = models.PositiveSmallIntegerField(null=True, blank=True, choices=Strength)
    is_all_bad = models.BooleanField(default=False, help_text="None of the responses is acceptable.")
    is_extra = models.BooleanField(
        default=False, help_text="Came after the comparison had all it wanted; kept, not counted."
    )
    edited_response = models.ForeignKey(
        Response, null=True, blank=True, on_delete=models.PROTECT, related_name="judgments_as_edit"
    )
    rationale = models.TextField(blank=True)
    highlights: Any = models.JSONField(
        default=list, blank=True, help_text=_("Spans of responses: response, start, end, text, reason.")
    )
    placement = models.CharField(max_length=9, choices=Placement, default=Placement.UNKNOWN, blank=True)
    guidelines_version = models.PositiveIntegerField(null=True, blank=True)
    is_random = models.BooleanField(
        default=False, help_text=_("Asked by chance: such judgments can stand for all, and evaluate without bias.")
    )
    shown_order: Any = models.JSONField(null=True, blank=True)
    mirror = models.CharField(max_length=8, choices=Mirror, default=Mirror.OWN, blank=True)
    seconds = models.FloatField(null=True, blank=True, help_text=_("On task, idle time taken out."))
    total_seconds = models.FloatField(null=True, blank=True, help_text=_("From showing to submitting."))
    num_revisions = models.PositiveSmallIntegerField(default=0)
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


class Revision(models.Model):
    """What a judgment said before its annotator changed it."""

    judgment = models.ForeignKey(Judgment, on_delete=models.CASCADE, related_name="revisions")
    values: Any = models.JSONField()
    replaced_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"Revision {self.pk} of {self.judgment}"


class Verdict(models.Model):
    """What a reviewer says about a comparison on which annotators differ; it stands beside their judgments."""

    comparison = models.ForeignKey(Comparison, on_delete=models.PROTECT, related_name="verdicts")
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="verdicts")
    reviewer = models.ForeignKey(Annotator, on_delete=models.PROTECT, related_name="verdicts")
    aspect = models.CharField(max_length=100, default=OVERALL)
    ranking: Any = models.JSONField()
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "aspect", "reviewer"), name="verdict_once"),)

    def __str__(self) -> str:
        return f"Verdict on {self.comparison}"


class Consensus(models.Model):
    """What the judgments of one comparison say together, and how certain that is; computed, never entered."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="consensus")
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    aspect = models.CharField(max_length=100, default=OVERALL)
    ranking: Any = models.JSONField()
    certainty = models.FloatField()
    num_judgments = models.PositiveSmallIntegerField()
    is_decided = models.BooleanField(default=False, help_text=_("A reviewer has given a verdict."))

    class Meta:
        constraints = (models.UniqueConstraint(fields=("comparison", "aspect"), name="consensus_once"),)
        indexes = (
            models.Index(fields=("project", "aspect", "is_decided", "certainty"), name="consensus_least_certain"),
        )
        verbose_name_plural = "consensus"

    def __str__(self) -> str:
        return f"Consensus on {self.comparison}"


class Figures(models.Model):
    """A project's figures as they were computed last: a page costs the same however many judgments there are."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="figures")
    values: Any = models.JSONField(default=dict)
    last_judgment = models.PositiveBigIntegerField(default=0)
    num_changes = models.PositiveIntegerField(default=0, help_text=_("Revisions and verdicts that went into it."))
    computed_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "figures"

    def __str__(self) -> str:
        return f"Figures of {self.project}"


class Endpoint(models.Model):
    """A model that answers on the live page: a server that speaks OpenAI's protocol, or a policy trained here.

    The key itself is never stored: `key_variable` names the environment variable that holds it.
    """

    class Kind(models.TextChoices):
        OPENAI = "openai", _("OpenAI-compatible server")
        POLICY = "policy", _("policy trained here")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="endpoints")
    name = models.CharField(max_length=100, help_text=_("What its answers are filed under; never shown to annotators."))
    kind = models.CharField(max_length=6, choices=Kind, default=Kind.OPENAI)
    base_url = models.URLField(blank=True, help_text=_("Such as http://127.0.0.1:8001/v1; empty for a policy."))
    model = models.CharField(max_length=500, help_text=_("The model's name on the server, or the policy's folder."))
    key_variable = models.CharField(max_length=100, blank=True, help_text=_("Environment variable that holds the key."))
    max_tokens = models.PositiveIntegerField(default=512)
    temperature = models.FloatField(default=1.0)
    is_active = models.BooleanField(default=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("project", "name"), name="endpoint_once"),)

    def __str__(self) -> str:
        return self.name


class ApiToken(models.Model):
    """A program's way in for one account, with all that its user may do. Only the digest of its secret is stored."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=100, help_text=_("What uses it."))
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    is_revoked = models.BooleanField(default=False)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.name


class Battle(models.Model):
    """A prompt that an annotator wrote on the live page, and the models that answer it.

    When they have answered, the answers become a comparison, leased to the annotator.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="battles")
    annotator = models.ForeignKey(Annotator, on_delete=models.CASCADE)
    messages: Any = models.JSONField()
    comparison = models.ForeignKey(Comparison, null=True, blank=True, on_delete=models.SET_NULL, related_name="battles")
    key = models.UUIDField(unique=True, help_text=_("Drawn by the page: a prompt sent twice is answered once."))
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = (models.Index(fields=("project", "annotator", "id"), name="battle_of_annotator"),)

    def __str__(self) -> str:
        return f"Battle {self.pk}"


class BattleAnswer(models.Model):
    """What one endpoint answers; while it writes, its text so far is in Redis. See `annotate.live`."""

    class State(models.TextChoices):
        QUEUED = "queued", _("waiting")
        WRITING = "writing", _("writing")
        DONE = "done", _("done")
        FAILED = "failed", _("failed")

    battle = models.ForeignKey(Battle, on_delete=models.CASCADE, related_name="answers")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE)
    position = models.PositiveSmallIntegerField(help_text=_("Where it is shown, by chance."))
    state = models.CharField(max_length=7, choices=State, default=State.QUEUED)
    text = models.TextField(blank=True)
    error = models.CharField(max_length=300, blank=True, help_text=_("For the lead; annotators see that it failed."))
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("position",)
        constraints = (
            models.UniqueConstraint(fields=("battle", "endpoint"), name="battle_answer_once"),
            models.UniqueConstraint(fields=("battle", "position"), name="battle_answer_position_once"),
        )

    def __str__(self) -> str:
        return f"{self.endpoint} in {self.battle}"
