"""The former place of ``marc-eval``, which jobs that were saved or queued earlier call by this name."""

import sys

from marc_dist.cli.eval import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
