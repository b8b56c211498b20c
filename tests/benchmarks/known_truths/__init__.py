"""Tasks with a known truth: the tokens that a model must and must not use are known by construction."""
