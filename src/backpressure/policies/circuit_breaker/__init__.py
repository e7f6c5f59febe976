"""Whether the sink is called: `CircuitBreaker`, and the parts that it is made of."""

from backpressure.policies.circuit_breaker.breaker import CircuitBreaker
from backpressure.policies.circuit_breaker.config import CircuitBreakerConfig
from backpressure.policies.circuit_breaker.metrics import CircuitBreakerMetrics
from backpressure.policies.circuit_breaker.permit import Canary, Permit
from backpressure.policies.circuit_breaker.state import State

__all__ = [
    "Canary",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerMetrics",
    "Permit",
    "State",
]
