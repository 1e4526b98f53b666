"""/openapi.json and the page that shows it, both made from the contract."""
