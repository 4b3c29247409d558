"""Packing of pictures with several bands of 8 or 16 bits or floats: one file a picture, or one file a band."""
