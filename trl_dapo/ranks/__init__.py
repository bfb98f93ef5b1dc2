"""What a rank holds of a rollout, and every exchange between ranks."""
