from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('training', '0001_initial'),
    ]

    operations = [
        migrations.AlterField(
            model_name='trainingrun',
            name='kind',
            field=models.CharField(choices=[('reward_model', 'Reward model'), ('evaluate', 'Evaluation'), ('rejection_sampling', 'Rejection sampling'), ('sft', 'Supervised fine-tuning'), ('score_comparisons', 'Guidance of annotation')], max_length=30),
        ),
    ]
