"""What a run cannot have, as data: each refusal with its key, why, what to write instead, and when it applies."""
