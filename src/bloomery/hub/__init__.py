"""Models of the Hub: an id -> a folder on this machine. Knows no tensor and no family."""
