"""vLLM in the same process: its weights, what it samples, and what checks both."""
