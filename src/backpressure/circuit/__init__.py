"""The parts of `backpressure.circuit_breaker`: import the public names from there, or from `backpressure`."""
