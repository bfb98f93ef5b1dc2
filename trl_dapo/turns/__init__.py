"""Completions of several turns: what happens between them, and what may go wrong in it."""
