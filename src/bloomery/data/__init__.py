"""Text -> token files -> training samples. Knows no model and no training."""
