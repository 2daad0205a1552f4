"""The architecture as a test: imports go one way, each dependency has one door, help is fast.

Each rule is one test over all files; its message lists every file that breaks it.
"""

import ast
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import shards
import student
import teacher_cache

Function = ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(__file__).parent.parent
LAYERS = ["shards", "teacher_cache", "student", "cli"]
SOURCES = [*sorted(p for layer in LAYERS[:3] for p in (ROOT / layer).glob("**/*.py")), ROOT / "cli.py"]
# The rooms of each package, lowest first: a room imports from those before it, and from itself.
ROOMS = {
    "shards": ["text", "", "pool", "index", "views", "formats", "tars", "commands"],
    "teacher_cache": ["record", "store", "network", "stage1", "inspect", "publish", "commands"],
    "student": ["learn.losses", "recipe", "feed", "learn", "run", "sweep", "cost", "report", "commands"],
}
DOORS = {
    "webdataset": {"shards/tars/writer.py"},
    "pyarrow": {"shards/formats/parquet.py"},
    "zarr": {"teacher_cache/store/zarr_arrays.py", "teacher_cache/store/zarr_objects.py"},
    "timm": {
        "teacher_cache/network/timm_network.py",
        "student/learn/network.py",
        "student/learn/optimiser.py",
        "student/learn/timm_model.py",
    },
    "torch.distributed": {
        "student/learn/process_group.py",
        "student/feed/feed_options.py",
    },  # the second reads its rank
    "matplotlib": {
        *("student/report/drawing.py", "teacher_cache/inspect/sheet.py", "teacher_cache/inspect/status.py"),
    },
    "click": {"cli.py", "shards/console.py"},
}
COMMANDS = {path.relative_to(ROOT).as_posix() for path in SOURCES if path.parent.name == "commands"}
MODULES_PER_FOLDER, LINES_PER_MODULE, LINES_PER_FUNCTION = 14, 400, 50


def _imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file, relative ones refused."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _upward_imports(path: Path) -> set[str]:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    above = set(LAYERS[layer + 1 :]) | {"tests", "benchmarks", "demo"}
    return {module for module in _imports(path) if module.split(".")[0] in above}


def test_packages_import_one_way() -> None:
    assert not {_name(path): upward for path in SOURCES if (upward := _upward_imports(path))}


def _room(module: str) -> tuple[str, str] | None:
    """Package and room of a module of ours; None for what is not ours, and for a package itself."""
    package, _, rest = module.partition(".")
    if package not in ROOMS or not rest:
        return None
    inside = [room for room in ROOMS[package] if room and (rest == room or rest.startswith(f"{room}."))]
    return package, max(inside, key=len, default="")


def _rooms_above(path: Path) -> set[str]:
    """The rooms from which a file imports although they stand above its own; a file must stand in a room."""
    own = _room(_name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    if own is None:
        return set()
    package, room = own
    assert room in ROOMS[package], f"{_name(path)} stands in no room"
    above = ROOMS[package][ROOMS[package].index(room) + 1 :]
    return {found[1] for module in _imports(path) if (found := _room(module)) and found[0] == package} & set(above)


def test_rooms_import_one_way() -> None:
    assert not {_name(path): above for path in SOURCES[:-1] if (above := _rooms_above(path))}


def full_folders(added: Iterable[str] = ()) -> dict[str, int]:
    """Folders with more modules than one can see at once, if `added` files existed too.

    An open set (a folder with a `table.py`: operations, kinds, losses) has as many members as people need.
    """
    modules = [_name(path) for path in SOURCES[:-1] if path.name != "__init__.py"]
    counts = Counter(module.rpartition("/")[0] for module in {*modules, *added})
    closed = {folder: count for folder, count in counts.items() if not (ROOT / folder / "table.py").exists()}
    return {folder: count for folder, count in closed.items() if count > MODULES_PER_FOLDER}


def test_a_folder_holds_about_a_dozen_modules() -> None:
    assert not full_folders()


def test_one_name_for_one_thing() -> None:
    """No two modules, and no two public classes, of one name."""
    # What a member of a set is called says which set.
    members = ("commands", "kinds", "losses", "operations", "formats")
    modules = [
        path.stem
        for path in SOURCES[:-1]
        if path.stem not in ("__init__", "commands", "flags") and path.parent.name not in members
    ]
    classes = [
        node.name
        for path in SOURCES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    for names in (modules, classes):
        assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("door", DOORS)
def test_each_dependency_has_one_door(door: str) -> None:
    users = {
        _name(path)
        for path in SOURCES
        if any(module == door or module.startswith(door + ".") for module in _imports(path))
    }
    assert users - (COMMANDS if door == "click" else set()) == DOORS[door], "a door too many, or one that nobody uses"


def _names_used(path: Path) -> set[str]:
    """The names that a file reads; a definition or an import alone uses nothing."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _top_level(path: Path) -> Iterator[str]:
    """The functions and classes that a file defines, but functions that a decorator registers, as commands are."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) or (isinstance(node, Function) and not node.decorator_list):
            yield node.name


def test_no_function_or_class_is_there_for_tests_alone() -> None:
    public = {name for package in (shards, teacher_cache, student) for name in package.__all__}
    others = [path for folder in ("benchmarks", "demo", "examples") for path in (ROOT / folder).rglob("*.py")]
    used = public.union(*map(_names_used, [*SOURCES, *others]))
    assert not [f"{_name(path)}: {name}" for path in SOURCES for name in _top_level(path) if name not in used]


def test_a_name_is_imported_from_the_module_that_defines_it() -> None:
    """With `__all__` a module hands on names of others; the public names stand in the stub of each package."""
    stubs = [ROOT / layer / "__init__.py" for layer in LAYERS[:3]]
    assert not [_name(path) for path in SOURCES if path not in stubs and "__all__" in path.read_text()]


def test_the_init_file_of_a_room_is_a_docstring() -> None:
    """A list of modules beside the modules themselves goes stale."""
    inits = [path for path in SOURCES if path.name == "__init__.py" and path.parent.name not in LAYERS]
    assert not [_name(path) for path in inits if len(ast.parse(path.read_text()).body) != 1]


def _prints(path: Path) -> list[int]:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_only_cli_prints() -> None:
    assert not {_name(path): lines for path in SOURCES[:-1] if (lines := _prints(path))}


def _code_lines(function: Function) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_modules_and_functions_stay_small() -> None:
    """A file cut in two for its length is worse than a long one; a function of more than 50 lines is a monster."""
    texts = {_name(path): path.read_text() for path in SOURCES[:-1]}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    nodes = [(name, node) for name, text in texts.items() for node in ast.walk(ast.parse(text))]
    functions = {f"{name}: {f.name}": _code_lines(f) for name, f in nodes if isinstance(f, Function)}
    assert not {name: count for name, count in lines.items() if count > LINES_PER_MODULE}
    assert not {name: count for name, count in functions.items() if count > LINES_PER_FUNCTION}


PARAMETERS = 8
LONG = {
    "student/feed/feed.py: Feed.__init__": "what a training loop chooses, one keyword each; all else is in FeedOptions"
}


def _num_parameters(function: Function) -> int:
    """Parameters that a caller may give: all but `self` and `cls`."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    rest = [name for name in (arguments.vararg, arguments.kwarg) if name]
    return len(names) + len(rest) - (names[:1] in (["self"], ["cls"]))


def _functions(node: ast.AST, name: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below a node with the classes and functions that it stands in."""
    for inner in ast.iter_child_nodes(node):
        own = f"{name}.{inner.name}".lstrip(".") if isinstance(inner, Function | ast.ClassDef) else name
        if isinstance(inner, Function):
            yield own, inner
        yield from _functions(inner, own)


def test_a_function_takes_eight_parameters_at_most() -> None:
    """More mean that a value is missing: related arguments travel together as one frozen value."""
    functions = [
        (f"{_name(path)}: {name}", f) for path in SOURCES for name, f in _functions(ast.parse(path.read_text()))
    ]
    counts = {name: _num_parameters(function) for name, function in functions}
    assert {name: count for name, count in counts.items() if count > PARAMETERS}.keys() == LONG.keys(), LONG


PRONOUNS = frozenset(("there", "found", "kept", "given", "said", "asked", "told", "begun", "chosen"))
NAMED = [*SOURCES, *(ROOT / "benchmarks").rglob("*.py")]


def _pronouns(path: Path) -> Iterator[str]:
    """Variables and parameters of functions that mean nothing without their context, each as "file:line name"."""
    for node in ast.walk(ast.parse(path.read_text())):
        for inner in ast.walk(node) if isinstance(node, Function) else ():
            name = inner.arg if isinstance(inner, ast.arg) else inner.id if isinstance(inner, ast.Name) else ""
            if name in PRONOUNS:
                yield f"{path.relative_to(ROOT)}:{inner.lineno} {name}"


def _documented_arguments(docstring: str) -> Iterator[str]:
    """The names in the section "Args:" of a docstring: "seed: of the order." or "mean, std: per channel."."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.M)
    for names in re.findall(r"^    (\w+(?:, \w+)*): ", section[1] if section else "", re.M):
        yield from names.split(", ")


def _unknown_arguments(path: Path) -> Iterator[str]:
    """The arguments that the docstring of a function describes and that it does not take."""
    for name, function in _functions(ast.parse(path.read_text())):
        names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        documented = _documented_arguments(ast.get_docstring(function) or "")
        yield from (f"{_name(path)}: {name}: {argument}" for argument in documented if argument not in names)


def test_docstrings_describe_arguments_that_exist() -> None:
    assert not [where for path in SOURCES for where in _unknown_arguments(path)]


def test_variables_say_what_they_hold() -> None:
    """`found` or `given` mean something only to their author: `existing_spec`, `parsed_flags`, `stored_logits`."""
    assert not sorted({where for path in NAMED for where in _pronouns(path)})


def test_help_imports_neither_torch_nor_zarr_and_is_fast() -> None:
    """The check is on imports; the time is a generous bound that only a heavy import can break."""
    code = (
        "import sys, runpy; sys.argv = ['cli.py', '--help']\n"
        "try: runpy.run_path('cli.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'timm', 'torchvision', 'webdataset', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cache-teacher" in done.stdout and "train-student" in done.stdout
    assert time.monotonic() - start < 10


def test_the_package_list_is_explicit_and_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in SOURCES if p.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    scripts = project["project"]["scripts"]
    assert scripts == {"deit-cache": "cli:program"}, "a command named cli would shadow others"
