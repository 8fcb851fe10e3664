"""The language models: the context-vector model and its baselines, behind one contract."""
