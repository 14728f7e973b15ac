"""Pure tensor functions and kernels; know nothing of modules."""
