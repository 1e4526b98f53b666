"""What answers: the agent loop, models and tools. Knows neither the store nor the wire."""
