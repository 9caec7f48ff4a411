"""Neighbours of the product that still change, one per file; nothing else here imports them."""
