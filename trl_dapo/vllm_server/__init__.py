"""vLLM in other processes: servers, their connections and requests, and how the weights get there."""
