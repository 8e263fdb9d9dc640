from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('annotate', '0006_asked_by_chance'),
    ]

    operations = [
        migrations.AddField(
            model_name='comparison',
            name='is_trial',
            field=models.BooleanField(default=False, help_text='Part of a test: neither guidance nor overlap changes when and how often it is asked.'),
        ),
        migrations.AddField(
            model_name='comparison',
            name='is_closed',
            field=models.BooleanField(default=False, help_text='Nobody is asked any more: a place that is given up is gone.'),
        ),
    ]
