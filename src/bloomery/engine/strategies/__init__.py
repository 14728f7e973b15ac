"""Ways to generate, one class each, and what they share."""
