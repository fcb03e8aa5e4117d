"""Exporting models to other runtimes, each file verified against its model on images; and timing.

One file a format. `deploy.export_model` writes and verifies, and `vit export` is its command; `timing` is
what `vit bench` and the project's benchmarks measure time with.
"""
