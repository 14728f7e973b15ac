"""What a run says of itself: figures, where they go, and how they are drawn. Knows no loss and no optimizer."""
