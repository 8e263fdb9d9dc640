"""Preference sets, training runs, members, and which reward model is a project's current one.

A run's row is the truth; a Celery message only wakes a worker. See `training.services` for the one transition
function and `training.launch` for the process behind a run.
"""

import uuid
from pathlib import Path
from typing import Any, Self

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import models
from django.db.models import Q

from annotate.models import Comparison, Project, Response


class PreferenceSetQuerySet(models.QuerySet["PreferenceSet"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        return self.filter(project__in=Project.objects.for_user(user))


class PreferenceSet(models.Model):
    """An immutable snapshot of a project's judgments, split by prompt; the records stand in `path`."""

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="preference_sets")
    name = models.CharField(max_length=100)
    seed = models.BigIntegerField(default=0)
    fractions: Any = models.JSONField(help_text="Shares of prompts: train, validation, test and guard.")
    digest = models.CharField(max_length=64, editable=False)
    counts: Any = models.JSONField(editable=False, help_text="Judgments, prompts and pairs in each split.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL
    )

    objects = PreferenceSetQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (models.UniqueConstraint(fields=("project", "name"), name="preference_set_name_once"),)

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("A preference set never changes; freeze another one.")
        super().save(*args, **kwargs)

    @property
    def path(self) -> Path:
        """The frozen records: content-addressed, so equal sets share one file."""
        return Path(settings.PREFERENCE_SETS_DIR) / f"{self.digest}.jsonl"


class TrainingRunQuerySet(models.QuerySet["TrainingRun"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """Runs on projects that this user sees; runs without a project are for whoever may see runs."""
        return self.filter(Q(project__isnull=True) | Q(project__in=Project.objects.for_user(user)))

    def active(self) -> Self:
        return self.filter(status__in=TrainingRun.ACTIVE)

    def started_by_people(self) -> Self:
        """Without the shards that runs have divided themselves into."""
        return self.filter(parent__isnull=True)


class TrainingRun(models.Model):
    """One training job. Only `training.services` changes its state, by conditional update."""

    class Kind(models.TextChoices):
        REWARD_MODEL = "reward_model", "Reward model"
        EVALUATE = "evaluate", "Evaluation"
        LEARNING_CURVE = "learning_curve", "Learning curve"
        SCORE = "score", "Scores of responses"
        REJECTION_SAMPLING = "rejection_sampling", "Rejection sampling"
        SFT = "sft", "Supervised fine-tuning"
        SCORE_COMPARISONS = "score_comparisons", "Guidance of annotation"
        COMBINE = "combine", "Combination of rewards"
        AVERAGE_WEIGHTS = "average_weights", "Weight average"
        PREVIEW_JUDGE = "preview_judge", "Preview of a judge"
        SAMPLE = "sample", "Sampling"
        RLHF = "rlhf", "RLHF"
        DPO = "dpo", "DPO"
        COMPARE_POLICIES = "compare_policies", "Comparison of policies"

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        WAITING = "waiting"  # for its shards
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    POLICY_KINDS = (Kind.SFT, Kind.REJECTION_SAMPLING, Kind.RLHF, Kind.DPO)
    ACTIVE = (Status.QUEUED, Status.RUNNING, Status.WAITING)

    kind = models.CharField(max_length=30, choices=Kind)
    name = models.CharField(max_length=100)
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.PROTECT, related_name="runs")
    preference_set = models.ForeignKey(
        PreferenceSet, null=True, blank=True, on_delete=models.PROTECT, related_name="runs"
    )
    parent = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="shards",
        help_text="The run of which this one does a part.",
    )
    config: Any = models.JSONField(help_text="Fields of the dataclass in training.alignment.config.")
    key = models.UUIDField(
        default=uuid.uuid4, unique=True, help_text="Drawn by the form: a double click starts one run."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL
    )

    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED)
    is_cancel_requested = models.BooleanField(default=False)
    attempts = models.PositiveSmallIntegerField(default=0)
    token = models.PositiveIntegerField(default=0, help_text="Fencing token: counts claims; only its holder may write.")
    worker = models.CharField(max_length=200, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    pid_started_at = models.FloatField(null=True, blank=True, help_text="With the pid it names one process for ever.")
    started_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    progress = models.FloatField(default=0)
    phase = models.CharField(max_length=100, blank=True)
    result: Any = models.JSONField(null=True, blank=True)
    error = models.TextField(blank=True)

    objects = TrainingRunQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(
                condition=~Q(status="running") | Q(heartbeat_at__isnull=False),
                name="run_running_has_heartbeat",
            ),
            models.CheckConstraint(
                condition=~Q(status="succeeded") | Q(result__isnull=False), name="run_succeeded_has_result"
            ),
        )
        indexes = (models.Index(fields=("status", "heartbeat_at"), name="run_by_status"),)

    def __str__(self) -> str:
        return f"{self.name} (run {self.pk})"

    @property
    def run_dir(self) -> Path:
        return Path(settings.RUNS_DIR) / str(self.pk)

    @property
    def model_dir(self) -> Path:
        """Where a run that trains something saves it (`save_pretrained`, safetensors)."""
        return self.run_dir / "model"

    @property
    def is_divided(self) -> bool:
        """Whether shards do parts of its work, once it has got so far."""
        num_shards = self.config.get("num_shards")
        return isinstance(num_shards, int) and num_shards > 1

    @property
    def is_active(self) -> bool:
        return self.status in self.ACTIVE

    @property
    def is_policy(self) -> bool:
        """Whether what it has trained can answer prompts."""
        return self.status == self.Status.SUCCEEDED and self.kind in self.POLICY_KINDS


class RunEvent(models.Model):
    """The audit trail of a run's states."""

    run = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    status = models.CharField(max_length=10)
    token = models.PositiveIntegerField()
    note = models.TextField(blank=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"{self.run_id}: {self.status}"


class Metric(models.Model):
    """One line of a run's metrics.jsonl."""

    run = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="metrics")
    line = models.PositiveIntegerField(help_text="Its number in the file.")
    values: Any = models.JSONField()

    class Meta:
        ordering = ("line",)
        constraints = (models.UniqueConstraint(fields=("run", "line"), name="metric_once"),)

    def __str__(self) -> str:
        return f"{self.run_id}:{self.line}"


class MemberQuerySet(models.QuerySet["Member"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """Members of projects that this user sees, and those of none."""
        return self.filter(Q(project__isnull=True) | Q(project__in=Project.objects.for_user(user)))

    def active(self) -> Self:
        return self.filter(is_active=True)


class Member(models.Model):
    """A registered reward: what `member.json` in `path` says, under a name. Never changed, but it can be retired."""

    class Kind(models.TextChoices):
        REWARD_MODEL = "reward_model", "Reward model"
        JUDGE = "judge", "Judge"
        SERVED_JUDGE = "served_judge", "Judge on a server"
        IMPLICIT = "implicit", "Implicit reward"
        LENGTH = "length", "Rule of length"
        REPETITION = "repetition", "Rule of repetition"
        FORMAT = "format", "Rule of form"
        WORDS = "words", "Words"

    name = models.CharField(max_length=100)
    project = models.ForeignKey(
        Project,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="reward_members",
        help_text="None: it can be used with every project.",
    )
    kind = models.CharField(max_length=30, choices=Kind, editable=False)
    aspect = models.CharField(max_length=100, editable=False)
    config: Any = models.JSONField(editable=False, help_text="Fields of the dataclass in alignment.member_config.")
    digest = models.CharField(max_length=64, editable=False)
    is_active = models.BooleanField(default=True, help_text="A retired member is offered no more.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL
    )

    objects = MemberQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name = "reward member"
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="member_name_once"),
            models.UniqueConstraint(
                fields=("name",), condition=Q(project__isnull=True), name="member_name_once_without_project"
            ),
        )

    def __str__(self) -> str:
        return f"{self.project}/{self.name}" if self.project else self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("A member never changes; make another one.")
        super().save(*args, **kwargs)

    @property
    def path(self) -> Path:
        """Its folder: content-addressed, so equal members share one."""
        return Path(settings.MEMBERS_DIR) / self.digest


class PromotionQuerySet(models.QuerySet["Promotion"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        return self.filter(project__in=Project.objects.for_user(user))


class Promotion(models.Model):
    """A reward model's becoming the current one of its project, in place of the one promoted before. Never changed.

    The promotions of a project are a chain: there is one first, and one that follows each, so that of two people who
    promote at once only one can have been compared with the current reward model.
    """

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="promotions")
    run = models.ForeignKey(
        TrainingRun, on_delete=models.PROTECT, related_name="promotions", help_text="Which made the reward model."
    )
    previous = models.OneToOneField(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="next", help_text="None: the first one."
    )
    preference_set = models.ForeignKey(
        PreferenceSet,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Whose held-out judgments the test is on; none where there was no test.",
    )
    test: Any = models.JSONField(help_text="Fields of promotion_queries.Test; empty where there was none.")
    is_overruled = models.BooleanField(
        "overruled", default=False, help_text="Promoted although the test did not allow it."
    )
    reason = models.TextField(blank=True, max_length=2000)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    objects = PromotionQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "projects' reward models"
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("project",), condition=Q(previous__isnull=True), name="promotion_first_once"
            ),
            models.CheckConstraint(
                condition=Q(is_overruled=False) | ~Q(reason=""), name="promotion_overruled_has_reason"
            ),
        )

    def __str__(self) -> str:
        return f"{self.project}: {self.run}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("A promotion never changes; promote another run.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("A promotion never changes; promote another run.")

    @property
    def incumbent(self) -> TrainingRun | None:
        """Whose place it took."""
        return self.previous.run if self.previous else None


BEFORE, WRITTEN, BEST = "before", "people/written", "people/best"  # no policy's name has a slash
OPPONENTS = {
    BEFORE: "the policy it began as",
    WRITTEN: "answers that people wrote",
    BEST: "the answers that people like best",
}  # of a run that trained a policy; of a comparison of policies they are its policies


class ContestQuerySet(models.QuerySet["Contest"]):
    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """Contests of this user's projects, each with the names of those of its runs that the user sees."""
        visible = TrainingRun.objects.for_user(user)
        names = {
            f"name_of_{field}": models.Subquery(visible.filter(pk=models.OuterRef(field)).values("name"))
            for field in ("run", "challenger_run", "opponent_run")
        }
        return self.filter(project__in=Project.objects.for_user(user)).annotate(**names)


class Contest(models.Model):
    """Two policies before annotators, blind: one against another on the same prompts, one pair of answers to each.

    Its run may be of a project that is hidden from those who see the contest: to them it is a number.
    Only the number wanted and whether it is closed ever change; the votes are ordinary judgments.
    """

    class Aim(models.TextChoices):
        EFFECT = "effect", "find a win rate this far from 50%"
        PRECISION = "precision", "know the win rate this exactly"

    run = models.ForeignKey(
        TrainingRun, on_delete=models.PROTECT, related_name="contests", help_text="Whose samples are compared."
    )
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="contests")
    challenger = models.CharField(max_length=500, help_text="The policy that is to be better, as the run's files say.")
    opponent = models.CharField(max_length=500)
    challenger_label = models.CharField(max_length=500, help_text="What it is called where no run saved it.")
    opponent_label = models.CharField(max_length=500)
    challenger_run = models.ForeignKey(
        TrainingRun, null=True, on_delete=models.PROTECT, related_name="+", help_text="The run that saved it."
    )
    opponent_run = models.ForeignKey(TrainingRun, null=True, on_delete=models.PROTECT, related_name="+")
    aim = models.CharField(max_length=9, choices=Aim, default=Aim.EFFECT)
    points = models.FloatField(help_text="What the aim says, in percentage points.")
    num_wanted = models.PositiveIntegerField(help_text="Votes, one for each prompt.")
    num_prompts = models.PositiveIntegerField(help_text="Prompts to which both have answers that differ.")
    num_identical = models.PositiveIntegerField(help_text="Prompts to which both say the same: ties, nobody is asked.")
    closed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    objects = ContestQuerySet.as_manager()

    class Meta:
        verbose_name = "verdict of people"
        verbose_name_plural = "verdicts of people"
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(fields=("run", "project", "challenger", "opponent"), name="contest_once"),
        )

    def __str__(self) -> str:
        return f"{self.challenger_name} against {self.opponent_name}"

    @property
    def challenger_name(self) -> str:
        return self._name("challenger_run") or self.challenger_label

    @property
    def opponent_name(self) -> str:
        return self._name("opponent_run") or self.opponent_label

    @property
    def run_name(self) -> str:
        return self._name("run") or ""

    @property
    def is_run_named(self) -> bool:
        """Whether the run is one that the user sees for whom this was read."""
        return bool(getattr(self, "name_of_run", None))

    def _name(self, field: str) -> str | None:
        """Of a run the name where it may be told, else its number."""
        pk, name = getattr(self, f"{field}_id"), getattr(self, f"name_of_{field}", None)
        return None if pk is None else f"{name} (run {pk})" if name else f"run {pk}"


class ContestPair(models.Model):
    """A comparison that belongs to a contest, and whose answer is whose."""

    contest = models.ForeignKey(Contest, on_delete=models.CASCADE, related_name="pairs")
    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="contest_pairs")
    challenger = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="+")
    opponent = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="+")
    scores: Any = models.JSONField(
        default=dict, help_text="By a reward's name (reward, held_out_reward) what it gives the two, or null."
    )

    class Meta:
        ordering = ("id",)
        constraints = (models.UniqueConstraint(fields=("contest", "comparison"), name="contest_pair_once"),)

    def __str__(self) -> str:
        return f"{self.comparison} of {self.contest}"
