"""Celery entry points of annotating. A message only wakes a worker; what is true stands in the database."""

from celery import shared_task


@shared_task(name="annotate.write_answer")
def write_answer(answer_id: int) -> None:
    from annotate import live  # noqa: PLC0415 -- tasks are leaves

    live.write_answer(answer_id=answer_id)


@shared_task(name="annotate.refresh_figures")
def refresh_figures(project_id: int) -> None:
    from annotate import figures  # noqa: PLC0415 -- tasks are leaves

    figures.refresh_by_worker(project_id=project_id)
