"""Token ids in, token ids out: one loop for every way of generating."""
