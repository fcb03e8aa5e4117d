"""Measurements of the package. A regular package, as Opacus installs a top-level `benchmarks` of its own."""
