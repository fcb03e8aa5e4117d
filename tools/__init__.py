"""Programs for those who work on the package; they are not installed."""
