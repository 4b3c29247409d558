"""A download as people have it -> labelled samples: recipes, archives, tables, masks, splits."""
