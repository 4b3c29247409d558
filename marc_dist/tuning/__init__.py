"""A search over settings: a checked space, suggestions, trials that are training runs, rows of our own, figures.

Why Ray Tune only runs the trials, and does not keep them: its stopping rule and its searcher follow the order in which
results happen to arrive, its restart counts again what was counted, and its records are pickles (``docs/design.md``).
``state.py`` decides, from the rows alone; executors only carry out.
"""
