"""Augmented views of a picture: drawn as plain numbers, applied one by one or by the batch."""
