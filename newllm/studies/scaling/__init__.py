"""How the loss scales with data, parameters and context."""
