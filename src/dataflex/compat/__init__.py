"""What only configurations of dataflex 1.1.0 need."""
