"""Models of providers. Everything here but `provider_data` needs the extra `models`."""
