"""Runs and sweeps as one HTML page, PNG figures and a CSV.

write.py is the way in; runs.py and sweep.py compose the two kinds of page from stats.py (what can be told apart),
curves.py, map.py and charts.py (figures as inline SVG), page.py (HTML); png.py draws the figures for papers.
"""

__all__ = ["charts", "curves", "map", "page", "png", "runs", "stats", "sweep", "write"]
