"""Bytes on disk: checkpoints in, checkpoints out."""
