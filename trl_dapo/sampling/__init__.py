"""
The decisions of dynamic sampling: which prompts to draw, how many, which groups to keep and where they go.

Pure Python on the standard library: every rank runs it on the same numbers and comes to the same decisions.
"""
