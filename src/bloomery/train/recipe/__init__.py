"""What a run can be told: frozen dataclasses, checked as they are made. Knows no tensor and imports no torch."""
