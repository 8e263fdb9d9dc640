"""What the workbench needs to know of rows that were there before it."""

from django.db import migrations
from django.db.models import Count, IntegerField, Max
from django.db.models.functions import Cast, Random

MAX_SHUFFLE = 2**31 - 1


def fill_in(apps, schema_editor):
    model = {name: apps.get_model("annotate", name) for name in ("Comparison", "Guidelines", "Judgment", "Project", "Standing")}
    model["Comparison"].objects.update(shuffle=Cast(Random() * MAX_SHUFFLE, IntegerField()))
    for project in model["Project"].objects.exclude(guidelines=""):
        model["Guidelines"].objects.create(project=project, version=1, text=project.guidelines)
        model["Project"].objects.filter(pk=project.pk).update(guidelines_version=1)
    judged = model["Judgment"].objects.exclude(source="import").filter(aspect="overall").order_by()
    counted = judged.values("project", "annotator").annotate(num=Count("pk"), last=Max("pk"))
    newest = {row["last"] for row in counted}
    last = {pk: comparison for pk, comparison in judged.values_list("pk", "comparison_id").iterator() if pk in newest}
    model["Standing"].objects.bulk_create(
        [
            model["Standing"](
                project_id=row["project"],
                annotator_id=row["annotator"],
                num_judged=row["num"],
                last_comparison_id=last[row["last"]],
            )
            for row in counted
        ]
    )


class Migration(migrations.Migration):
    dependencies = [("annotate", "0002_workbench")]
    operations = [migrations.RunPython(fill_in, migrations.RunPython.noop)]
