"""Publishing on the Hub: the facts of a run, the model card made from them, and the push."""
