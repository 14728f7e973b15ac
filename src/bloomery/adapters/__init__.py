"""What is added to a model without training all of it: changes of weights, and virtual tokens before every text."""
