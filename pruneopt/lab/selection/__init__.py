"""What a selection costs."""
