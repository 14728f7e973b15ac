"""The same requests answered by plain transformers."""
