import sys
from pathlib import Path

import pytest

from autoprune.errors import TaskError, UsageError
from autoprune.task.base import Task
from autoprune.task.load import load_task

SOURCE = """
from helper_of_user import NAME
from tests.task.toys import toy_task
import autoprune.task.base

def good():
    return toy_task(name=NAME)

def raises():
    return 1 / 0

def incomplete():
    return autoprune.task.base.Task(name="x")

def number():
    return 3

value = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text(SOURCE)
    (tmp_path / "sub" / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "sub" / "helper_of_user.py").write_text("NAME = 'from a file'\n")
    (tmp_path / "user_module_task.py").write_text("from tests.task.toys import toy_task\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("helper_of_user", "user_module_task"):
        sys.modules.pop(name, None)


def test_a_function_in_a_file(folder):
    path_before = list(sys.path)
    assert load_task("sub/mine.py:good").name == "from a file"
    assert load_task(f"{folder}/sub/mine.py:good").name == "from a file"
    assert sys.path == path_before


def test_a_function_in_a_module(folder):
    assert isinstance(load_task("tests.task.toys:toy_task"), Task)
    assert isinstance(load_task("user_module_task:toy_task"), Task)


def test_files_of_the_same_name_do_not_meet(folder):
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "task.py").write_text(
            f"from tests.task.toys import toy_task\ndef make():\n    return toy_task(name={name!r})\n"
        )
    assert [load_task(f"{name}/task.py:make").name for name in ("a", "b", "a")] == ["a", "b", "a"]


def test_builtin_names():
    assert load_task("digits", "mlp").name == "digits"


def test_an_unknown_name_lists_the_known_ones_and_both_forms():
    with pytest.raises(UsageError, match=r"Did you mean 'digits'.*package\.module:function.*file\.py:function"):
        load_task("digit")


@pytest.mark.parametrize("spec", [":make", "sub/mine.py:", "sub/mine.py:not a name"])
def test_a_spec_without_a_function_is_refused(spec):
    with pytest.raises(UsageError, match="does not name a function"):
        load_task(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sub/absent.py:good", r"no file sub/absent\.py"),
        ("sub/broken.py:good", "running sub/broken.py failed: ModuleNotFoundError"),
        ("no_such_package.task:good", "importing 'no_such_package.task' failed"),
        ("sub/mine.py:absent", r"names no function; the callables there are: good, incomplete, number, raises"),
        ("sub/mine.py:value", "names no function"),
        ("sub/mine.py:raises", "failed: ZeroDivisionError"),
        ("sub/mine.py:number", "must return an autoprune.Task; it returned int"),
        ("sub/mine.py:incomplete", "a task's build_model must be"),
    ],
)
def test_what_cannot_be_loaded_says_why(folder, spec, message):
    with pytest.raises(TaskError, match=message):
        load_task(spec)


def test_options_of_builtin_tasks_are_refused_for_others(folder):
    with pytest.raises(UsageError, match="--model belongs to the built-in tasks"):
        load_task("sub/mine.py:good", model="resnet8")
    with pytest.raises(UsageError, match="--data-dir belongs to the built-in tasks"):
        load_task("sub/mine.py:good", data_dir=Path("data"))


@pytest.mark.parametrize("source", ["import sys; sys.exit(3)", "import sys\n\ndef make_task():\n    sys.exit(3)"])
def test_a_task_file_cannot_end_the_program(tmp_path, source):
    (tmp_path / "leaves.py").write_text(source)
    with pytest.raises(TaskError, match="failed: SystemExit: 3"):
        load_task(f"{tmp_path / 'leaves.py'}:make_task")


@pytest.mark.parametrize("spec", ["sub/lazy.py:make", "lazy:make"])
def test_functions_of_a_task_may_import_what_lies_beside_it(folder, spec, monkeypatch):
    place = folder / spec.rpartition("/")[0]
    (place / "late_module.py").write_text("from tests.task.toys import toy_model as build\n")
    (place / "late_package").mkdir()
    (place / "late_package" / "__init__.py").write_text("")
    (place / "late_package" / "inner.py").write_text("")
    (place / "lazy.py").write_text(
        "from tests.task.toys import toy_task\n"
        "def build():\n    import late_module\n    import late_package.inner\n    return late_module.build()\n"
        "def make():\n    return toy_task(build_model=build)\n"
    )
    before = list(sys.path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    known = len(sys.meta_path)
    task = load_task(spec)
    load_task(spec)
    assert sys.path == before
    assert len(sys.meta_path) == known + 1
    monkeypatch.setattr(sys, "path", [entry for entry in before if entry])
    assert task.build_model() is not None
    for name in ("late_module", "late_package", "late_package.inner", "lazy"):
        sys.modules.pop(name, None)
