"""What a checkpoint holds and how a run goes on from it."""
