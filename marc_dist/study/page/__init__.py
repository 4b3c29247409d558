"""``OUT/report/index.html``: everything that a study found on one page, which needs no network."""
