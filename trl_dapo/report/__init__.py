"""What a run says of itself: metrics, record of rollout groups, tables and curves."""
