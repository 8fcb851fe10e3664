"""Ways to carry a cell over time; the reference is the specification of all."""
