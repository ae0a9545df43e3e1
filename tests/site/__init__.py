"""What a made site has to keep; ./run docs looks at it."""
