"""The results of a sweep as a table for a terminal."""

from student.report.charts import fixed
from student.report.stats import best, best_first, gains, groups, mean_gain
from student.sweep.sweep_directory import Sweep


def sweep_lines(sweep: Sweep) -> list[str]:
    """One line a setting, best first: top-1 over the seeds, gain over no teacher, agreement with the teacher."""
    all_groups = groups(sweep)
    top = best(all_groups)
    rows = [("setting", "top-1 %", "± sd", "gain", "agrees %", "seeds")]
    for group in best_first(all_groups):
        rows.append(
            (
                group.label + (" ★" if group is top and len(all_groups) > 1 else ""),
                fixed(group.mean("top1"), 2),
                fixed(group.spread("top1"), 2),
                mean_gain(gains(group, all_groups)),
                fixed(100 * group.mean("teacher_agreement"), 1),
                f"{len(group.runs)}/{len(group.results)}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
