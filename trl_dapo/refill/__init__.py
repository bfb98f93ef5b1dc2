"""How a generation batch is filled: in rounds, or group by group."""
