"""What is compiled: the binding, and the path of a request."""
