"""Models at equal cost, tuned alike."""
