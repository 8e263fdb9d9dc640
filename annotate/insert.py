"""Many rows of one model by few statements, without making an object for each.

`bulk_create` spends two thirds of an import on objects and on preparing plain text and numbers that the driver takes
as they are. This keeps what the database needs: defaults, JSON, UUIDs and times; values are not validated.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from django.db import connection, models
from django.utils import timezone

MAX_VALUES = 65_535  # in one statement, by PostgreSQL's protocol
_PREPARED = (models.JSONField, models.UUIDField, models.DateTimeField)


def insert(model: type[models.Model], names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Insert `rows`, whose values belong to the fields in `names`; other fields get their defaults.

    A foreign key is given as an id. Returns the new primary keys, in the order of `rows`.
    """
    if not rows:
        return []
    given = [model._meta.get_field(name) for name in names]
    others = [field for field in model._meta.concrete_fields if not field.primary_key and field not in given]
    fields: list[Any] = [*given, *others]
    defaults = [_default(field) for field in others]
    prepare = [partial(field.get_db_prep_save, connection=connection) for field in fields]
    is_prepared = [isinstance(field, _PREPARED) for field in fields]
    ids: list[int] = []
    with connection.cursor() as cursor:
        size = min(connection.ops.bulk_batch_size(fields, rows), MAX_VALUES // len(fields))
        for chunk in _chunks(rows, size):
            values: list[Any] = []
            for row in chunk:
                complete = (*row, *(default() for default in defaults))
                for value, needs, prepared in zip(complete, is_prepared, prepare, strict=True):
                    values.append(prepared(value) if needs else value)
            cursor.execute(_statement(model, fields, len(chunk)), values)
            ids.extend(pk for (pk,) in cursor.fetchall())
    return ids


def _chunks(rows: Sequence[tuple[Any, ...]], size: int) -> Iterator[Sequence[tuple[Any, ...]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _default(field: Any) -> Callable[[], Any]:
    return timezone.now if getattr(field, "auto_now_add", False) else field.get_default


def _statement(model: type[models.Model], fields: Sequence[Any], num_rows: int) -> str:
    quote = connection.ops.quote_name
    columns = ", ".join(quote(field.column) for field in fields)
    row = f"({', '.join(['%s'] * len(fields))})"
    values = ", ".join([row] * num_rows)
    table, key = quote(model._meta.db_table), quote(model._meta.pk.column)
    return f"INSERT INTO {table} ({columns}) VALUES {values} RETURNING {key}"  # noqa: S608 -- names of our own models
