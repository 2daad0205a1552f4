"""The study: does a cached teacher help on photographs, and what of the cache decides how much?

    python -m benchmarks.study SETTINGS.toml --photos DIR --work DIR [--minutes N]    runs what is missing
    python -m benchmarks.study SETTINGS.toml --work DIR --tables [--png DIR]           tables of what has finished

`settings` is the file, `commands` runs this project's own commands and keeps their times, `derived` makes a cache that
holds, on purpose, the answers to other views, `stages` puts them in order, `results` reads the runs and `tables` says
what they came to.
"""
