"""One small module for each neighbour of the lake, each an extra of the package, imported when it is chosen."""
