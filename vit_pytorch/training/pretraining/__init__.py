"""Runs that learn without labels: their settings, what trains and what watches them, and what they leave."""
