"""Recording the offsets of a running model, the places of their cells, and where they came from."""
