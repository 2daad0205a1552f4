"""The architecture as a test: imports go one way, each dependency has one door, help is fast."""

import ast
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["shards", "teacher_cache", "student", "cli"]
SOURCES = [*sorted(p for layer in LAYERS[:3] for p in (ROOT / layer).glob("**/*.py")), ROOT / "cli.py"]
# The rooms of each package, lowest first: a room imports from those before it, and from itself.
ROOMS = {
    "shards": ["", "pool", "index", "views", "tars", "flags", "commands"],
    "teacher_cache": ["record", "store", "network", "stage1", "inspect", "publish", "commands"],
    "student": ["learn.losses", "recipe", "feed", "learn", "run", "sweep", "cost", "report", "commands"],
}
DOORS = {
    "webdataset": {"shards/index/reader.py", "shards/tars/writer.py"},
    "zarr": {"teacher_cache/store/zarr_arrays.py", "teacher_cache/store/zarr_objects.py"},
    "timm": {"teacher_cache/network/timm_network.py", "student/learn/network.py", "student/learn/optimiser.py"},
    "torch.distributed": {"student/learn/process_group.py"},
    "click": {
        *("cli.py", "shards/console.py", "shards/flags.py", "shards/commands.py"),
        *(p.relative_to(ROOT).as_posix() for p in SOURCES if p.parent.name == "commands"),
    },
}


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


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_go_one_way(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    above = set(LAYERS[layer + 1 :]) | {"tests", "benchmarks", "demo"}
    assert not {m for m in _imports(path) if m.split(".")[0] in above}


def _room(module: str) -> tuple[str, str] | None:
    """Package and room of a module of ours; None for what is not ours, and for a package itself."""
    package, _, rest = module.partition(".")
    if package not in ROOMS or not rest:
        return None
    inside = [room for room in ROOMS[package] if room and (rest == room or rest.startswith(f"{room}."))]
    return package, max(inside, key=len, default="")


@pytest.mark.parametrize("path", SOURCES[:-1], ids=_name)
def test_rooms_import_one_way(path: Path) -> None:
    own = _room(_name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    if own is None:
        return
    package, room = own
    assert room in ROOMS[package], f"{_name(path)} stands in no room"
    above = ROOMS[package][ROOMS[package].index(room) + 1 :]
    used = {found[1] for module in _imports(path) if (found := _room(module)) and found[0] == package}
    assert not used & set(above)


def test_a_folder_holds_about_a_dozen_modules() -> None:
    folders = {path.parent for path in SOURCES[:-1]}
    counts = {_name(folder): len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) for folder in folders}
    assert not {name: count for name, count in counts.items() if count > 14}


def test_one_name_for_one_thing() -> None:
    """No two modules, and no two public classes, of one name."""
    members = ("commands", "kinds", "losses", "operations")  # what a member of a set is called says which set
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
    assert users, f"nothing imports {door}: the list of doors is out of date"
    assert users <= DOORS[door]


@pytest.mark.parametrize("path", SOURCES[:-1], ids=_name)
def test_only_cli_prints(path: Path) -> None:
    calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _code_lines(function: Function) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES[:-1], ids=_name)
def test_modules_stay_small(path: Path) -> None:
    """Past 330 lines an idea is missing (a file cut in two for its length is worse); functions past 50 are monsters."""
    text = path.read_text()
    assert len(text.splitlines()) <= 330
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    assert not {f.name: _code_lines(f) for f in functions if _code_lines(f) > 50}


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
    assert scripts == {"deit-cache": "cli:cli"}, "a command named cli would shadow others"
