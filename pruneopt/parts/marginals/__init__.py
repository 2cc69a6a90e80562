"""Marginals: how much mass every token sends or receives. One file per marginal."""
