"""The project as a package: what `pip install` puts where, and what its files say."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from shards import __version__

ROOT = Path(__file__).parent.parent


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
