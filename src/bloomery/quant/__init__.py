"""Weights in few bits: what a scheme is, how it is packed, and the linear layers that hold it."""
