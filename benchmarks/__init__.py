"""Measurements of cost, beside the peers where they are installed."""
