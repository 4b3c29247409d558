"""``python -m marc_dist.cli.study``: how saved jobs and batch scripts call it, without an installed command."""

import sys

from marc_dist.cli.study import main

if __name__ == "__main__":  # a helper process of Python's may import this file, too
    sys.exit(main())
