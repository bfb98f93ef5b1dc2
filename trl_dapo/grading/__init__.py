"""Whether an answer equals the gold answer: no torch, no TRL, bounded time and memory."""
