"""Components for dataflex: one selector, one mixer, one weighter."""
