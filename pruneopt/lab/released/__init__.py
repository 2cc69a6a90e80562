"""Selection against the rule of every released method, written as its release runs it."""
