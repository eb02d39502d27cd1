"""The gRPC services of the daemon: one servicer a file, one table of who may call what, one mapping of refusals."""
