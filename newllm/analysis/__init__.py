"""What runs are compared with, what they show, and what follows from it."""
