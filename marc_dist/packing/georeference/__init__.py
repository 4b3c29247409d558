"""Where and when the pictures of a download were taken: GeoTIFF tags, columns of tables, names."""
