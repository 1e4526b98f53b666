"""The HTTP door: the documented REST API in front of the contract, driven by its descriptors."""
