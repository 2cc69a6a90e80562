"""Equal shares of a budget against one price for all pictures."""
