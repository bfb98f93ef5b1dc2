"""Refilling a generation batch group by group, without rounds."""
