"""Whether a smaller gap to the optimum helps: the greedy rule of a method against a better solver."""
