"""The shells of the image formats: what opens a format's pure reader as a node."""
