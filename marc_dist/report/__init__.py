"""What people look at: pages, charts, tables of an evaluation, a search, a tuning."""
