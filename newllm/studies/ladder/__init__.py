"""From the original to the modern recipe, change by change."""
