"""Text in, checkpoint out: one loop for every size of run."""
