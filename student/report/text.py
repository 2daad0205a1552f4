"""The results of a sweep as a table for a terminal."""

import math
import statistics

from student.report.charts import fixed
from student.report.stats import baseline, best, groups, paired_gain
from student.sweep.sweep_directory import Sweep


def sweep_lines(sweep: Sweep) -> list[str]:
    """One line a setting, best first: top-1 over the seeds, gain over no teacher, agreement with the teacher."""
    all_groups = groups(sweep)
    top = best(all_groups)
    rows = [("setting", "top-1 %", "± sd", "gain", "agrees %", "seeds")]
    for group in sorted(all_groups, key=lambda g: -g.mean("top1") if math.isfinite(g.mean("top1")) else math.inf):
        base = baseline(all_groups, group.cell.views_used)
        gains = paired_gain(group, base) if base is not None and base is not group else []
        rows.append(
            (
                group.label + (" ★" if group is top and len(all_groups) > 1 else ""),
                fixed(group.mean("top1"), 2),
                fixed(group.spread("top1"), 2),
                f"{statistics.fmean(gains):+.2f}" if gains else "–",
                fixed(100 * group.mean("teacher_agreement"), 1),
                f"{len(group.runs)}/{len(group.results)}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
