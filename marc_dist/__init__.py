"""Multi-label remote-sensing retrieval, exact at any scale. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
