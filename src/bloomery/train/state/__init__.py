"""What a run is on disk: its folder, and checkpoints that are written, verified, published and read. Knows no loop."""
