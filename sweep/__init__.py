"""Every architecture of transformers, tiny and random, through all that trimtab does with a model."""
