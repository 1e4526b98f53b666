"""Agents that run elsewhere: the client of hansard.runtime.v1.AgentRuntimeService."""
