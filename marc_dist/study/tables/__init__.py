"""What a study found: collected from its folder, as Markdown, CSV and LaTeX, with figures of its sweeps."""
