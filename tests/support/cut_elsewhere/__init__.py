"""Two insertion points as another package would add them: inside the vision encoder, and in the cache."""
