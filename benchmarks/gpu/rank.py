"""One rank of a run on a GPU that it shares: `python -m benchmarks.gpu.rank WORDS` is `python cli.py WORDS` over gloo.

NCCL refuses two ranks on one GPU. gloo takes them, slowly, and the rest of the code is the same.
"""

import sys

from cli import cli
from student.learn import process_group

process_group.BACKENDS["cuda"] = "gloo"
cli(sys.argv[1:])
