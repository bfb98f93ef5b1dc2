"""The groups of a run, for eyes: on disk and in the terminal."""
