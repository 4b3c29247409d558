"""What may vary in a search, and which point comes next: a checked space, its constraints, proposals."""
