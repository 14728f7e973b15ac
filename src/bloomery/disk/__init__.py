"""Files and folders that appear whole or not at all, and stay where they belong. Knows nothing of what is in them."""
