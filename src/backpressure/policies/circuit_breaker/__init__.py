"""Whether the sink is called: `CircuitBreaker`, and the parts that it is made of."""

from backpressure.policies.circuit_breaker.breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerMetrics,
    Permit,
    State,
)

__all__ = ["CircuitBreaker", "CircuitBreakerConfig", "CircuitBreakerMetrics", "Permit", "State"]
