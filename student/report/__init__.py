"""Runs and sweeps as one HTML page, PNG figures and a CSV.

write.py is the way in; runs_page.py and sweep_page.py compose the two kinds of page from stats.py (what can be told
apart), curves.py, heat_map.py and page.py (HTML). drawing.py draws every chart, as SVG in the page and as PNG (png.py),
from charts.py (lines and numbers) and colours.py; text.py is for a terminal.
"""
