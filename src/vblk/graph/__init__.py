"""The block graph: nodes, edges, handles, and the data plane that moves payload."""
