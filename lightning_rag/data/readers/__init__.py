"""One reader for each data set or file format."""
