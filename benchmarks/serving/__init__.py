"""`csmf bench serving`: the server's speed against the floor that gRPC sets, and against peers."""
