"""The project as a package: what `pip install` puts where, and what its files say."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from shards import __version__

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_pip_install_carries_every_module_and_gives_the_command(tmp_path: Path) -> None:
    """Built from a copy, as the build leaves folders behind; run away from the checkout, so that nothing else helps."""
    copy, site = tmp_path / "copy", tmp_path / "site"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, copy)
    for name in ("shards", "teacher_cache", "student"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(copy)], check=True, capture_output=True)
    for package in ("shards", "teacher_cache", "student"):
        files = {p.relative_to(copy) for p in (copy / package).rglob("*") if p.is_file()}
        assert not {str(file) for file in files if not (site / file).is_file()}
    command = [str(site / "bin" / "deit-cache")]
    env = {"PYTHONPATH": str(site), "PATH": str(Path(sys.executable).parent)}
    said = subprocess.run([*command, "--version"], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert __version__ in said.stdout
    bash = env | {"_DEIT_CACHE_COMPLETE": "bash_complete", "COMP_WORDS": "deit-cache tr", "COMP_CWORD": "1"}
    said = subprocess.run(command, cwd=tmp_path, env=bash, check=True, capture_output=True, text=True)
    assert "train-student" in said.stdout, "the shell completes names of commands"


def test_licence_citation_and_changelog_agree_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"]["text"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation and "\nlicense: Apache-2.0\n" in citation
    assert re.search(rf"^## (Unreleased: )?{re.escape(__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_constraints_name_every_dependency_and_no_place() -> None:
    """`make` installs from them: each is one exact version, none a path or a host; markers cover the Pythons."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        found = re.fullmatch(r"([a-z0-9][a-z0-9.-]*)==([0-9][\w.]*)( ; [\w\s.<>=!'()]+)?", line)
        assert found, line
        pins[found[1]] = found[2]
    assert len(pins) == len(lines), "one version for all Pythons, so that what one was tested with the others get"
    extras = project["optional-dependencies"]
    for wanted in (*project["dependencies"], *extras["demo"], *extras["lite0"], *extras["test"]):
        requirement = Requirement(wanted)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(pins[name]), wanted


def test_three_pythons_are_named_everywhere_alike() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert named == ["3.11", "3.12", "3.13"] and project["requires-python"] == f">={named[0]}"
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert json.dumps(named) in workflow and "make test" in workflow
    assert "Operating System :: POSIX :: Linux" in project["classifiers"]


def test_the_hooks_run_what_make_lint_runs() -> None:
    lint = re.search(r"^lint: venv\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert lint is not None
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert [name for name in re.findall(r"bin/(\w+)", lint[1]) if f".venv/bin/{name}" not in hooks] == []


def test_warnings_of_our_modules_are_errors_and_those_of_libraries_are_not() -> None:
    """The next version of a library may warn of the one after it."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.warn_explicit("going away", DeprecationWarning, "core.py", 1, module="zarr.core.array")
    assert len(heard) == 1
    for module in ("shards.rng", "cli", "student.feed.feed", "tests.test_package"):
        with pytest.raises(DeprecationWarning):
            warnings.warn_explicit("going away", DeprecationWarning, "ours.py", 1, module=module)
