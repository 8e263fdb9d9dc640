"""The shards of a run, for its page: runs that do parts of its work, which it waits for."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from training.models import TrainingRun

MAX_SHOWN = 200
Status = TrainingRun.Status


@dataclass(frozen=True)
class Shards:
    """What a run has divided itself into, so far."""

    shown: Sequence[TrainingRun]
    """The newest ones, in their order."""
    num_hidden: int
    percent: int
    """Of those that it waits for, or waited for last."""
    words: str


def shards(run: TrainingRun) -> Shards | None:
    """Nothing where the run has not divided itself."""
    found = list(run.shards.defer("config", "result"))
    if not found:
        return None
    waited_for = _waited_for_last(run, found)
    num_done = sum(shard.status == Status.SUCCEEDED for shard in waited_for)
    return Shards(
        shown=found[:MAX_SHOWN][::-1],
        num_hidden=max(0, len(found) - MAX_SHOWN),
        percent=int(100 * fmean(shard.progress for shard in waited_for)),
        words=f"{num_done} of {len(waited_for)} shards done",
    )


def _waited_for_last(run: TrainingRun, found: Sequence[TrainingRun]) -> Sequence[TrainingRun]:
    """Shards are queued when their run begins to wait."""
    since = run.events.filter(status=Status.WAITING).values_list("at", flat=True).last()
    return [shard for shard in found if since is None or shard.created_at >= since] or found
