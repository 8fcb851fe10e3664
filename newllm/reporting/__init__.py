"""The report of a series: a page of Markdown, and the same as one HTML file."""
