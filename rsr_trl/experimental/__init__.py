"""One neighbour of the product per file, still changing; nothing else here imports it."""
