"""Is a study's data sound? Pictures that lie in two splits, labels that look wrong; scores with and without them."""
