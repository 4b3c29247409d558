"""What ``data/cache.py`` is made of: the files of decoded pictures, and where pictures come from."""
