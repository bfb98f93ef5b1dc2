"""What goes to the Hub: the model card, its facts, and the push."""
