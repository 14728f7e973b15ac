"""Logits -> logits: `chain` is the order, the other files are what stands in it."""
