"""What the commands of every version wrote, one folder per version; see make.py."""

from pathlib import Path

SETS = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())
