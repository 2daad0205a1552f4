"""Runs and sweeps as one HTML page, PNG figures and a CSV.

write.py is the way in; runs_page.py and sweep_page.py compose the two kinds of page from stats.py (what can be told
apart), curves.py, heat_map.py and charts.py (figures as inline SVG), page.py (HTML); png.py draws for papers,
text.py for a terminal.
"""
