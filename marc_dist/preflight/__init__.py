"""Is this place well? What ranks look at before a run, and the rules that name a sick node."""
