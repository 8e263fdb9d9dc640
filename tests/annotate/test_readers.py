"""What others make of exported files: `datasets` and TRL, in a process of their own."""

import io
import json
import os
import subprocess
import sys

import pytest
from django.core.management import call_command

from config.home import BASE_DIR
from tests.factories import make_comparison, make_judgment, make_project

MESSAGES = "List({'role': Value('string'), 'content': Value('string')})"
BIG = "x" * 12_000  # so that a thousand rows pass the ten megabytes from which Arrow infers types


def rows(number, **values):
    for n in range(number):
        yield {"prompt": f"{n}? {BIG}", "responses": ["yes", "no"], "ranking": [[0], [1]], "meta": {"n": n}, **values}


@pytest.mark.slow
@pytest.mark.django_db
def test_datasets_loads_both_formats_and_trl_trains_on_pairs(tmp_path):
    # what comes first knows nothing; what comes after ten megabytes knows everything, and other things in its meta
    lines = [*rows(1000), *rows(2, prompt="late", annotator="anna", strength=2, seconds=1.5, shown_order=[1, 0])]
    lines[-1] |= {"meta": {"models": ["a", "b"], "n": "text", "deep": {"er": [1]}}, "id": "last"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    project = make_project(name="tea")
    call_command("import_data", "tea", str(tmp_path / "in.jsonl"), stdout=io.StringIO())
    make_judgment(comparison=make_comparison(k=4, project=project), order=[[2], [0, 1], [3]])
    files = [tmp_path / "rankings.jsonl", tmp_path / "pairs.jsonl.gz"]
    for name, file in zip(("rankings", "trl-pairwise"), files, strict=True):
        call_command("export_data", "tea", name, str(file), stderr=io.StringIO())

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "tests.annotate.reader", str(tmp_path), *map(str, files)]
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rankings"]["rows"] == [json.loads(line) for line in files[0].read_text().splitlines()]
    assert told["rankings"]["types"] == {
        "id": "Value('string')",
        "prompt": MESSAGES,
        "responses": "List({'role': Value('string'), 'content': Value('string'), 'model': Value('string')})",
        "ranking": "List(List(Value('int64')))",
        "annotator": "Value('string')",
        "aspect": "Value('string')",
        "strength": "Value('int64')",
        "all_bad": "Value('bool')",
        "source": "Value('string')",
        "shown_order": "List(Value('int64'))",
        "seconds": "Value('float64')",
        "meta": "Value('string')",
    }
    assert len(told["pairs"]["rows"]) == 1002 + 5
    assert told["pairs"]["types"] == {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
    assert told["trained"] == {"steps": 2, "is_finite": True}
