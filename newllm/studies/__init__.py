"""The studies: which runs belong to each, what follows from them, its part of the report."""
