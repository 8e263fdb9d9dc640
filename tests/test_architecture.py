"""The walls of the house: who imports what, seen in fresh interpreters and in the sources."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.home import BASE_DIR

SOURCES = [path for name in ("annotate", "config", "training") for path in sorted((BASE_DIR / name).rglob("*.py"))]
HEAVY = {"torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors"}


def modules_after(code: str, home: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = {"PLUMBLINE_HOME": str(home), "DJANGO_SETTINGS_MODULE": "config.settings", "PATH": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules_of(package: str) -> list[str]:
    folder = BASE_DIR.joinpath(*package.split("."))
    found = pkgutil.walk_packages([str(folder)], f"{package}.")
    return [package, *(module.name for module in found if not module.name.endswith(".__main__"))]


def django_side() -> list[str]:
    """What the web server and the workers may load: everything but training.alignment."""
    names = [".".join(path.relative_to(BASE_DIR).with_suffix("").parts) for path in SOURCES if path.stem != "__init__"]
    return [name for name in names if not name.startswith("training.alignment.") and ".migrations." not in name]


def imports(path: Path) -> Iterator[str]:
    """Absolute names that a file imports anywhere: `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls() -> Iterator[str]:
    """Every call in the sources, as written."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES)
    return (ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))


def importers(*names: str, under: str = "") -> set[str]:
    """Files under a folder that import one of `names`, or something in it."""
    return {
        str(path.relative_to(BASE_DIR))
        for path in SOURCES
        if path.is_relative_to(BASE_DIR / under)
        and any(imported == name or imported.startswith(f"{name}.") for imported in imports(path) for name in names)
    }


@pytest.mark.parametrize("package", ["annotate.stats", "annotate.demonstration", "annotate.formats"])
def test_pure_packages_load_no_django(package, tmp_path):
    loaded = modules_after(f"import {', '.join(modules_of(package))}", tmp_path)
    assert loaded & {"django", "celery", "config", "training"} == set()


@pytest.mark.slow
def test_alignment_loads_no_django_and_no_app(tmp_path):
    modules = [*modules_of("training.alignment"), "training.alignment.__main__"]
    loaded = modules_after(f"import {', '.join(modules)}", tmp_path)
    assert loaded & {"django", "celery", "config", "annotate"} == set()
    assert "torch" in loaded


def test_web_and_workers_load_no_torch(tmp_path):
    loaded = modules_after(f"import django; django.setup(); import {', '.join(django_side())}", tmp_path)
    assert loaded & HEAVY == set()
    assert {"django", "celery", "annotate", "training"} <= loaded


def test_annotate_knows_nothing_of_training():
    assert importers("training", under="annotate") == set()


def test_pure_sources_import_no_django_and_no_app():
    assert importers("django", "annotate", "config", under="training/alignment") == set()
    assert importers("django", "training", "config", under="annotate/stats") == set()
    assert importers("django", "training", "config", under="annotate/demonstration") == set()
    assert importers("django", "training", "config", under="annotate/formats") == set()


def test_of_alignment_only_configurations_and_the_run_directory_cross():
    crossing = {name for path in SOURCES if "alignment" not in path.parts for name in imports(path)}
    modules = {".".join(name.split(".")[:3]) for name in crossing if name.startswith("training.alignment.")}
    assert modules == {f"training.alignment.{name}" for name in ("config", "member_config", "run_dir")}


def test_packages_that_a_notebook_imports_through_are_empty():
    packages = [BASE_DIR / name / "__init__.py" for name in ("annotate", "training", "training/alignment")]
    assert [path.read_text() for path in packages] == ["", "", ""]


def test_untrusted_text_is_marked_safe_in_one_place_only():
    assert importers("django.utils.safestring.mark_safe") == {"annotate/rendering.py"}
    assert [call for call in calls() if call.startswith(("SafeString(", "SafeText("))] == []
    templates = {path.name: path.read_text() for path in (BASE_DIR / "templates").rglob("*.html")}
    assert [name for name, text in templates.items() if "|safe" in text or "autoescape off" in text] == []


def test_nothing_runs_code_from_a_file():
    assert importers("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve") == set()
    assert [call for call in calls() if "trust_remote_code" in call.replace("trust_remote_code=False", "")] == []
    assert [call for call in calls() if call.startswith(("torch.load(", "eval(", "exec("))] == []
