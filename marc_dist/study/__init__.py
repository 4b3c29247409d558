"""A study: losses x data sets x encoders x seeds. A YAML file -> ordinary run folders -> tables with tests.

``plan.py`` knows what there is to do, from the file alone; ``worker.py`` does it, one task after the other, in as many
processes as there are; ``tables/`` writes what came out, from what lies in the folder.
"""
