"""Domains that the rows of the data name (`dataflex.domains`)."""
