"""What a run is configured with, and the checks of it that need no model."""
